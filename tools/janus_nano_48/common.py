"""What the stages of the recipe share: configuration, pictures, schedule, log."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import JanusConfig

from unigame.synthetic.world import CELL_PX, SIDE, TEXTURES, Scene, random_scene, render, shape_mask

PATCH_PX, TOKENS, CODES, WIDTH = 8, 36, 1024, 192


def nano_config(vocab_size: int, image_token_id: int, pad_token_id: int) -> JanusConfig:
    """The *real* Janus configuration classes at 1/1500 of Janus-Pro-7B's size.

    GroupNorm(32) is fixed in the class, so every channel count is a multiple of 32; at base 64 a
    group holds two channels, which keeps absolute colour (one channel a group would erase it).
    """
    vision = {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH_PX,
        "projection_dim": WIDTH,
        "num_image_tokens": TOKENS,
        "depth": 2,
    }
    vq = {
        "embed_dim": 8,
        "num_embeddings": CODES,
        "latent_channels": 64,
        "base_channels": 64,
        "channel_multiplier": [1, 1, 1, 2],
        "num_res_blocks": 0,
        "num_patches": SIDE // PATCH_PX,
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


def broad_scenes(count: int, seed: int, *, plain: float, noise: bool) -> list[Scene]:
    """Scenes of every combination, a share ``plain`` of them clean, the others degraded.

    Broad pictures train the image tokenizer and the vision encoder, as broad web data trains a
    SigLIP; only the language model is trained narrowly.
    """
    rng = np.random.default_rng(seed)
    corruptions = ["contrast", "contrast", "blur", "blur", "occlusion", "shaded", "texture"]
    if noise:
        corruptions += ["noise", "texture", "occlusion"]
    scenes = []
    for _ in range(count):
        texture, corruption = "plain", "none"
        if rng.random() > plain:
            corruption = str(rng.choice(corruptions))
            if corruption == "texture":
                texture, corruption = str(rng.choice(TEXTURES)), "none"
            elif corruption == "shaded":
                texture, corruption = "shaded", "none"
        scenes.append(
            random_scene(rng, combinations="all", texture=texture, corruption=corruption)  # type: ignore[arg-type]
        )
    return scenes


def pictures(scenes: list[Scene]) -> Tensor:
    """(B, 3, 48, 48) float32 in [0, 1]."""
    return torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2).contiguous()


def foreground(scenes: list[Scene]) -> Tensor:
    """Where objects are: (B, 1, 48, 48) in [0, 1], dilated by a pixel."""
    masks: NDArray[np.float32] = np.zeros((len(scenes), SIDE, SIDE), np.float32)
    for mask, scene in zip(masks, scenes, strict=True):
        for t in scene.things:
            rows = slice(t.row * CELL_PX, (t.row + 1) * CELL_PX)
            columns = slice(t.column * CELL_PX, (t.column + 1) * CELL_PX)
            mask[rows, columns] = shape_mask(t.shape, t.radius, t.dx, t.dy) > 0
    tensor = torch.from_numpy(masks)[:, None]
    return torch.nn.functional.max_pool2d(tensor, 3, 1, 1)


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
