"""Loading a checkpoint of Emu3."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3Processor

from unigame.backbones.base import Reading
from unigame.backbones.common.autoregressive import TOKENIZER
from unigame.backbones.common.hub_model import load_weights
from unigame.backbones.common.understanding import reading_of
from unigame.backbones.emu3.model import Emu3Backbone, layout_and_pixels
from unigame.backbones.folder import check_files
from unigame.backbones.model_files import processor_from


def from_pretrained(
    name_or_path: str | Path, *, dtype: str = "float32", device: torch.device | None = None
) -> Emu3Backbone:
    """A checkpoint in the Hub format; ``load_backbone`` calls this.

    Raises:
        UserError: files are missing or unreadable, or weights do not fit the configuration.
    """
    if isinstance(name_or_path, Path):
        check_files(name_or_path)
    with processor_from(name_or_path):
        processor = Emu3Processor.from_pretrained(name_or_path)
    model = load_weights(Emu3ForConditionalGeneration, name_or_path, dtype, float32=[TOKENIZER])
    return Emu3Backbone(model, processor).to(device or torch.device("cpu"))


def load_reading(name_or_path: str | Path) -> Reading:
    """How the checkpoint reads records; no weights are read."""
    with processor_from(name_or_path):
        processor = Emu3Processor.from_pretrained(name_or_path)
    config = Emu3Config.from_pretrained(name_or_path)
    return reading_of(*layout_and_pixels(processor), config, Emu3Backbone.max_images)
