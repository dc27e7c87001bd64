"""Chameleon."""
