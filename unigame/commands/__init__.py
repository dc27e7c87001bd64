"""What the commands do. Each module is imported by the command that needs it, and only then."""
