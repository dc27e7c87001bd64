"""The benchmark ``mmbench``."""
