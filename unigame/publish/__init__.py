"""A run's result on the Hub: what of it is pushed, its model card, and the upload."""
