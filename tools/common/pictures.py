"""Pictures at the size of the bundled models, and the styles that a picture can have.

The world draws scenes of 48 px; the models read and draw 36 px. The scene's picture is made smaller
exactly as the checkpoints' own processors make it (8-bit, bicubic), so nothing in the world knows
about a model's size. At 36 px the analytic reader still finds every object.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unigame.synthetic.dataset import to_pil
from unigame.synthetic.world import (
    CELL_PX,
    GRID,
    SIDE,
    TEXTURES,
    Scene,
    Severity,
    random_scene,
    shape_mask,
)

PX, PATCH_PX, WIDTH = 36, 4, 192
"""Side of a picture and of a patch that is read, in px; width of the language models."""
TOKENS = (PX // PATCH_PX) ** 2
FAR: Severity = "far"
"""How strong the conditions of the out-of-distribution splits are for this model."""
CROWDED, MIXED = (2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 5, 7, 9)
STYLES = ("clean", "noise", "contrast", "occlusion", "blur", "texture")
"""Every way a picture can look; held-out combinations are content, not style."""


def styled(
    style: str,
    rng: np.random.Generator,
    severity: Severity = "broad",
    counts: tuple[int, ...] = (1, 2, 3, 4),
) -> Scene:
    """A scene of any combination in one style."""
    texture = str(rng.choice(TEXTURES)) if style == "texture" else "plain"
    return random_scene(
        rng,
        combinations="all",
        counts=counts,
        texture=texture,
        corruption="none" if style in ("clean", "texture") else style,  # type: ignore[arg-type]
        severity=severity,
    )


def style_of(scene: Scene) -> str:
    """The name of a scene's style."""
    if scene.corruption != "none":
        return scene.corruption
    return "clean" if scene.texture == "plain" else "texture"


def broad_scenes(
    count: int,
    seed: int,
    clean: float,
    severity: Severity = "broad",
    counts: tuple[int, ...] = (1, 2, 3, 4),
) -> list[Scene]:
    """Scenes of every combination, a share ``clean`` of them plain, the others in all styles.

    Parts that look at patches are shown crowded boards (``counts`` up to nine): the same picture
    then teaches three times as many shapes.
    """
    rng = np.random.default_rng([seed, 91])
    chances = [clean] + [(1 - clean) / (len(STYLES) - 1)] * (len(STYLES) - 1)
    styles = rng.choice(STYLES, size=count, p=chances)
    return [styled(str(style), rng, severity, counts) for style in styles]


def pictures_8bit(scenes: Sequence[Scene]) -> Tensor:
    """(B, 3, 36, 36) uint8, as the processor makes them."""
    shown = [np.asarray(to_pil(s).resize((PX, PX), Image.Resampling.BICUBIC)) for s in scenes]
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).contiguous()


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """(B, 3, 36, 36) float32 in [0, 1]."""
    return pictures_8bit(scenes).float() / 255


def foreground(scenes: Sequence[Scene]) -> Tensor:
    """Where objects are: (B, 1, 36, 36) in [0, 1], dilated by a pixel."""
    masks: NDArray[np.float32] = np.zeros((len(scenes), SIDE, SIDE), np.float32)
    for mask, scene in zip(masks, scenes, strict=True):
        for t in scene.things:
            rows = slice(t.row * CELL_PX, (t.row + 1) * CELL_PX)
            columns = slice(t.column * CELL_PX, (t.column + 1) * CELL_PX)
            mask[rows, columns] = shape_mask(t.shape, t.radius, t.dx, t.dy) > 0
    small = torch.nn.functional.interpolate(torch.from_numpy(masks)[:, None], (PX, PX), mode="area")
    return torch.nn.functional.max_pool2d((small > 0.2).float(), 3, 1, 1)


def busy_patches(scenes: Sequence[Scene]) -> Tensor:
    """Which of the 81 patches show an object, (B, 81)."""
    return torch.nn.functional.max_pool2d(foreground(scenes), PATCH_PX).flatten(1) > 0


def patch_cells() -> Tensor:
    """Which cell of the board each of the 81 patches lies in."""
    side = PX // PATCH_PX
    index = torch.arange(side) // (side // GRID)
    return (index[:, None] * GRID + index[None]).reshape(-1)
