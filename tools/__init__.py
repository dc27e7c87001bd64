"""What users never import: training the bundled model."""
