"""Rules of settings, and YAML whose words stay words."""
