"""UnifiedBench: a folder of numbered pictures, to be captioned and drawn again."""

from __future__ import annotations

from pathlib import Path

from ..dataset import to_pil
from ..world import random_scene
from .common import Rng

REPLIES = 2  # a caption and a picture


def write(folder: Path, size: int, rng: Rng) -> None:
    """``size / 2`` pictures, ``Image/1.png`` and so on."""
    images = folder / "Image"
    images.mkdir()
    for number in range(max(1, size // REPLIES)):
        to_pil(random_scene(rng)).save(images / f"{number + 1}.png")
