"""The benchmark ``dpg``."""
