"""The recipe of the bundled model ``janus-nano``; ``main.STAGES`` has its stages in order."""

from .main import main

__all__ = ["main"]
