"""What the recipes of the bundled models share: pictures, readers, training loops, gates."""
