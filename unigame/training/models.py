"""From what a user hands to the trainer to the backbone that it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import JanusForConditionalGeneration, enable_full_determinism, set_seed

from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.errors import UserError
from unigame.training.config import UniGameConfig


def as_backbone(
    model: str | Path | Backbone | JanusForConditionalGeneration,
    args: UniGameConfig,
    processing_class: Any,
) -> Backbone:
    """The backbone that ``model`` names or is; frozen weights load in bfloat16 under ``bf16``."""
    if isinstance(model, Backbone):
        return model
    if isinstance(model, str | Path):
        return load_backbone(
            model, dtype="bfloat16" if args.bf16 else "float32", device=args.device
        )
    if isinstance(model, JanusForConditionalGeneration):
        if processing_class is None:
            raise UserError(
                "processing_class is missing: a loaded JanusForConditionalGeneration does not "
                "carry its JanusProcessor; pass it, or give the checkpoint's folder as model"
            )
        from unigame.backbones.janus.model import JanusBackbone

        return JanusBackbone(model, processing_class)
    raise UserError(
        f"model is {type(model).__name__}; give a checkpoint folder or Hub id, a Backbone, or a "
        "JanusForConditionalGeneration"
    )


def seed_everything(args: UniGameConfig) -> None:
    """Set every global generator to ``seed``, whatever the process drew before."""
    (enable_full_determinism if args.full_determinism else set_seed)(args.seed)
