"""Loading a BAGEL from a folder or a Hub repository in the published layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unigame.backbones.bagel.files import (
    HUB_FILES,
    VAE_WEIGHTS,
    WEIGHTS,
    read_config,
    read_model,
    shapes_in,
)
from unigame.backbones.bagel.layout import BagelLayout
from unigame.backbones.bagel.model import BagelBackbone
from unigame.backbones.base import Reading
from unigame.backbones.common.pixels import fitted_pixels
from unigame.backbones.common.understanding import reading_of
from unigame.backbones.folder import open_safetensors
from unigame.backbones.model_files import processor_from


def from_pretrained(
    name_or_path: str | Path, *, dtype: str = "float32", device: torch.device | None = None
) -> BagelBackbone:
    """A published folder, as it is; ``load_backbone`` calls this.

    Raises:
        UserError: files are missing or unreadable, or weights do not fit the configurations.
    """
    folder = _folder(name_or_path, HUB_FILES)
    tokenizer = load_tokenizer(folder)
    model = read_model(folder, dtype, device or torch.device("cpu"))
    if isinstance(name_or_path, str):
        # Adapters name their base: by what any machine finds, and not by a folder of this one.
        model.name_or_path = model.config._name_or_path = name_or_path
        model.config._commit_hash = folder.name  # a snapshot's folder has its commit's name
    return BagelBackbone(model, tokenizer)


def load_reading(name_or_path: str | Path) -> Reading:
    """How the checkpoint reads records; of weights no more than their shapes, if they are here."""
    weights = (WEIGHTS, VAE_WEIGHTS)
    folder = _folder(name_or_path, [name for name in HUB_FILES if name not in weights])
    files = [folder / name for name in weights]
    shapes = [shapes_in(open_safetensors(file)) if file.is_file() else None for file in files]
    config = read_config(folder, *shapes)
    layout = BagelLayout(load_tokenizer(folder), config.num_image_tokens, config.num_latents)
    pixels = fitted_pixels(*config.image_shape)
    return reading_of(layout, pixels, config, BagelBackbone.max_images)


def _folder(name_or_path: str | Path, names: Sequence[str]) -> Path:
    """The folder; of a Hub repository, these files of it."""
    if isinstance(name_or_path, Path):
        return name_or_path
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name_or_path, allow_patterns=list(names)))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        UserError: it does not load.
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    # Qwen2's where its files do not say otherwise; AutoConfig does not know BAGEL.
    usual = PreTrainedConfig(tokenizer_class="Qwen2Tokenizer")
    with processor_from(folder):
        return AutoTokenizer.from_pretrained(folder, config=usual)
