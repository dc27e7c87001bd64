"""BAGEL's eyes and connector, as ``tools.common.vision`` trains them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tools.common import vision
from tools.common.pictures import WIDTH
from unigame.backbones.bagel.eyes import Connector, PlaceTable, VisionTransformer, places

from .config import nano_config


class Tower(nn.Module):
    """The modules by which ``BagelModel.read`` reads, under its names."""

    def __init__(self) -> None:
        super().__init__()
        config = nano_config(8)
        config.vit_config._attn_implementation = "eager"  # faster than SDPA at 81 tokens
        self.eyes = VisionTransformer(config.vit_config)
        width = config.vit_config.hidden_size
        self.connector = Connector(width, WIDTH, config.connector_act)
        self.table = PlaceTable(config.vit_max_num_patch_per_side, WIDTH)
        with torch.no_grad():
            self.table.pos_embed.copy_(self.table.values())
        side = config.vit_max_num_patch_per_side
        self.register_buffer("places", places(side, side, side, torch.device("cpu")), False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 36, 36) in [0, 1] -> (B, 81, W)."""
        features = self.connector(self.eyes(images * 2 - 1, self.places))
        return features + self.table(self.places)


def train(folder: Path, seed: int, scale: float = 1.0, steps: int = vision.STEPS) -> None:
    """Train them and write ``vision.safetensors`` to ``folder``."""
    vision.train(folder, seed, Tower, scale, steps)
