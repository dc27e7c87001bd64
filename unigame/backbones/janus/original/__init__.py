"""Janus as its authors publish it."""
