"""The benchmark ``naturalbench``."""
