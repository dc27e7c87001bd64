"""Free-running drawing in less time: the same pictures, but for rounding."""
