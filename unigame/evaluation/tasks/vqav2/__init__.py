"""The benchmark ``vqav2``."""
