"""Reports: read what runs wrote (JSON, numbers, pictures) and draw it, without torch."""
