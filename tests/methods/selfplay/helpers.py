"""Small batches for the fake backbone."""

from __future__ import annotations

import torch

from tests.methods.selfplay.fake_backbone import ANSWERS, SIDE
from unigame.methods.selfplay import Rows


def make_batch(size: int = 4, seed: int = 0, **fields: object) -> Rows:
    images = torch.rand(size, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return Rows(
        images=images,
        questions=[f"question {i}" for i in range(size)],
        answers=[ANSWERS[i % len(ANSWERS)] for i in range(size)],
        captions=[f"caption {i}" for i in range(size)],
        ids=[f"image-{i}" for i in range(size)],
        **fields,
    )
