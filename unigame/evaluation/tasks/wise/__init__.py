"""The benchmark ``wise``."""
