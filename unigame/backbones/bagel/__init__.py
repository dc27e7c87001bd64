"""BAGEL."""
