"""The benchmark ``advqa``."""
