"""Loading a BAGEL from a folder or a Hub repository in the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unigame.backbones.bagel.files import HUB_FILES, read_model
from unigame.backbones.bagel.model import BagelBackbone
from unigame.backbones.model_files import processor_from


def from_pretrained(
    name_or_path: str | Path, *, dtype: str = "float32", device: torch.device | None = None
) -> BagelBackbone:
    """A published folder, as it is; ``load_backbone`` calls this.

    Raises:
        UserError: files are missing or unreadable, or weights do not fit the configurations.
    """
    if isinstance(name_or_path, Path):
        folder = name_or_path
    else:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name_or_path, allow_patterns=list(HUB_FILES)))
    tokenizer = load_tokenizer(folder)
    model = read_model(folder, dtype, device or torch.device("cpu"))
    return BagelBackbone(model, tokenizer)


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
