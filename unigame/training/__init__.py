"""Training: the game as a ``transformers.Trainer``, its settings, recipes and checkpoints."""

from __future__ import annotations

from unigame.training.config import UniGameConfig
from unigame.training.trainer import UniGameTrainer

__all__ = ["UniGameConfig", "UniGameTrainer"]
