"""Drawings that U verifies: drawing, asking, the store, and how far the verifier can be trusted."""
