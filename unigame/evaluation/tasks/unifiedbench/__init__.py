"""The benchmark ``unifiedbench``."""
