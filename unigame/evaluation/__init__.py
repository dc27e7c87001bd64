"""Measuring what a model can do; one folder per benchmark, in ``tasks/``."""
