"""The benchmark ``geneval``."""
