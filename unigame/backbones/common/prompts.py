"""Questions that the package itself asks of a model."""

CAPTION_QUESTION = "describe the image"
