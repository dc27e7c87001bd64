"""G teaches U: from text alone G draws, U checks the drawing, and U learns to answer about it."""

from unigame.methods.imagine.method import Imagine, ImagineSettings

__all__ = ["Imagine", "ImagineSettings"]
