"""Loading a checkpoint of Janus or Janus-Pro in the Hub format."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from unigame.backbones.base import Reading
from unigame.backbones.common.autoregressive import TOKENIZER
from unigame.backbones.common.hub_model import load_weights
from unigame.backbones.common.pixels import PixelTwin
from unigame.backbones.common.understanding import reading_of
from unigame.backbones.folder import check_files
from unigame.backbones.janus.layout import JanusLayout
from unigame.backbones.janus.model import JanusBackbone
from unigame.backbones.model_files import processor_from


def from_pretrained(
    name_or_path: str | Path, *, dtype: str = "float32", device: torch.device | None = None
) -> JanusBackbone:
    """A checkpoint in the Hub format; ``load_backbone`` calls this.

    Raises:
        UserError: files are missing or unreadable, or weights do not fit the configuration.
    """
    if isinstance(name_or_path, Path):
        check_files(name_or_path)
    with processor_from(name_or_path):
        processor = load_processor(name_or_path)
    model = load_weights(JanusForConditionalGeneration, name_or_path, dtype, float32=[TOKENIZER])
    return JanusBackbone(model, processor).to(device or torch.device("cpu"))


def load_reading(name_or_path: str | Path) -> Reading:
    """How the checkpoint reads records; no weights are read."""
    with processor_from(name_or_path):
        processor = load_processor(name_or_path)
    config = JanusConfig.from_pretrained(name_or_path)
    pixels = PixelTwin(processor.image_processor)
    return reading_of(JanusLayout(processor), pixels, config, JanusBackbone.max_images)


def load_processor(name_or_path: str | Path) -> JanusProcessor:
    """The processor of a checkpoint, always with the PIL image processor.

    Transformers picks the torchvision one where torchvision is installed, whose resize differs by
    up to a grey level: the same run would then read other pixels on another machine.
    """
    processor = JanusProcessor.from_pretrained(name_or_path)
    if not isinstance(processor.image_processor, JanusImageProcessorPil):
        processor.image_processor = JanusImageProcessorPil.from_pretrained(name_or_path)
    return processor
