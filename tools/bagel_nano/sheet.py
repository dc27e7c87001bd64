"""A picture to look at: for each style true pictures, the same redrawn, and free drawings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tools.common.pictures import STYLES, pictures, styled
from unigame.synthetic.world import caption

from .gates import load_nano

COLUMNS, ENLARGED = 8, 3


def write(folder: Path, seed: int) -> None:
    """``sheet.png``: three rows a style."""
    nano, rng = load_nano(folder), np.random.default_rng([seed, 8])
    rows = []
    for style in STYLES:
        scenes = [styled(style, rng) for _ in range(COLUMNS)]
        true = pictures(scenes)
        free = nano.draw([caption(s) for s in scenes], nano.temperature, seed)
        rows += [torch.cat(list(images), dim=2) for images in (true, nano.redraw(true), free)]
    shown = torch.cat(rows, dim=1).permute(1, 2, 0).clamp(0, 1).numpy()
    made = Image.fromarray((shown * 255).round().astype(np.uint8))
    size = (made.width * ENLARGED, made.height * ENLARGED)
    made.resize(size, Image.Resampling.NEAREST).save(folder / "sheet.png")
