"""Measuring what a model can do; one file per benchmark."""
