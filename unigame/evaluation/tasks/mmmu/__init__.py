"""The benchmark ``mmmu``."""
