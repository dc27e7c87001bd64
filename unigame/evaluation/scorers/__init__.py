"""Models that score drawings: judges, detector, encoders."""
