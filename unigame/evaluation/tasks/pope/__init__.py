"""The benchmark ``pope``."""
