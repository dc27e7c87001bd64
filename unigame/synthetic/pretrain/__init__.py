"""The recipe of the bundled model ``janus-nano``: tokenizer, vision, language, gates, in order."""

from .main import main

__all__ = ["main"]
