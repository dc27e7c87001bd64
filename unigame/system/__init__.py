"""What the machine and the terminal need: output, signals, threads, folders, stray text."""
