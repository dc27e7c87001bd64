"""Is the installation sound, what hardware is there, and what fits on it?"""
