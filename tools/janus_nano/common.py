"""What the stages share: configuration, pictures at the model's size, styles.

The world draws scenes of 48 px; the model reads and draws 36 px. The scene's picture is made
smaller exactly as the checkpoint's own ``JanusProcessor`` makes it (8-bit, bicubic), so nothing in
the world knows about the model's size. At 36 px the analytic reader still finds every object.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import JanusConfig

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

PX, PATCH_PX, WIDTH, CODES = 36, 4, 192, 2048
TOKENS = (PX // PATCH_PX) ** 2
FAR: Severity = "far"
"""How strong the conditions of the out-of-distribution splits are for this model."""
CROWDED, MIXED = (2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 5, 7, 9)
STYLES = ("clean", "noise", "contrast", "occlusion", "blur", "texture")
"""Every way a picture can look; held-out combinations are content, not style."""


def nano_config(vocab_size: int, image_token_id: int, pad_token_id: int) -> JanusConfig:
    """The *real* Janus configuration classes, small: 81 tokens read, 81 codes drawn.

    GroupNorm(32) is fixed in the class, so every channel count is a multiple of 32. A decoder of 32
    channels takes a third of the time of one of 64, and every candidate of the game is drawn by it.
    """
    vision = {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": PX,
        "patch_size": PATCH_PX,
        "projection_dim": WIDTH,
        "num_image_tokens": TOKENS,
        "depth": 2,
    }
    vq = {
        "embed_dim": 8,
        "num_embeddings": CODES,
        "latent_channels": 64,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 2],
        "num_res_blocks": 0,
        "num_patches": PX // PATCH_PX,
        "projection_dim": WIDTH,
        "image_token_embed_dim": WIDTH,
    }
    text = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "vocab_size": vocab_size,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 200.0},
        "tie_word_embeddings": False,
        "pad_token_id": pad_token_id,
    }
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=image_token_id,
        tie_word_embeddings=False,
    )


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


def portion(number: int, scale: float) -> int:
    """``scale`` of a number of steps or pictures, at least two: for trying the recipe quickly."""
    return max(2, round(number * scale))


def warm_cosine(step: int, total: int, warmup: int = 40, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Log:
    """Lines to the screen and to ``log.jsonl``: the recipe's record of what happened."""

    def __init__(self, folder: Path, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.stage, self.start = folder / "log.jsonl", stage, time.perf_counter()

    def __call__(self, **fields: Any) -> None:
        """Write one line."""
        row = {
            "stage": self.stage,
            "seconds": round(time.perf_counter() - self.start, 1),
            **{k: round(v, 4) if isinstance(v, float) else v for k, v in fields.items()},
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)  # noqa: T201
