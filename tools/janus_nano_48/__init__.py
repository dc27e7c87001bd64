"""The recipe of the bundled 48 px model ``janus-nano``; ``main.STAGES`` has its stages."""

from .main import main

__all__ = ["main"]
