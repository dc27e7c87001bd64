"""From what a user hands to the trainer to the backbone that it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, enable_full_determinism, set_seed

from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.backbones.loading import wrap_model
from unigame.training.config import UniGameConfig
from unigame.training.sharding import loading_device


def as_backbone(
    model: str | Path | Backbone | PreTrainedModel,
    args: UniGameConfig,
    processing_class: Any,
) -> Backbone:
    """The backbone that ``model`` names or is; frozen weights load in bfloat16 under ``bf16``."""
    if isinstance(model, Backbone):
        return model
    if isinstance(model, str | Path):
        return load_backbone(
            model, dtype="bfloat16" if args.bf16 else "float32", device=loading_device(args)
        )
    return wrap_model(model, processing_class)


def seed_everything(args: UniGameConfig) -> None:
    """Set every global generator to ``seed``, whatever the process drew before."""
    (enable_full_determinism if args.full_determinism else set_seed)(args.seed)
