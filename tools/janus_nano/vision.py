"""Janus's vision encoder and aligner, as ``tools.common.vision`` trains them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVisionAlignerMLP, JanusVisionModel

from tools.common import vision

from .config import nano_config


class Tower(nn.Module):
    """The two real modules in the order in which Janus applies them."""

    def __init__(self) -> None:
        super().__init__()
        config = nano_config(64, 3, 0).vision_config
        config._attn_implementation = "eager"  # faster than SDPA at 81 tokens
        self.vision_model = JanusVisionModel(config)
        self.aligner = JanusVisionAlignerMLP(config)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 36, 36) in [0, 1] -> (B, 81, W)."""
        return self.aligner(self.vision_model(images * 2 - 1).last_hidden_state)


def train(folder: Path, seed: int, scale: float = 1.0) -> None:
    """Train them and write ``vision.safetensors`` to ``folder``."""
    vision.train(folder, seed, Tower, scale)
