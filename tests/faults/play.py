"""A small game on a tiny random Janus, for the fault tests."""

from __future__ import annotations

from functools import cache
from tempfile import TemporaryDirectory

import torch

from tests.tiny import make_tiny_janus
from unigame.backbones import Backbone, load_backbone
from unigame.methods.selfplay import Perturber, Rows


@cache
def tiny_janus() -> Backbone:
    """One model for all tests that leave it as it is."""
    with TemporaryDirectory() as folder:
        return load_backbone(make_tiny_janus(folder), device="cpu")


def batch_of(size: int = 3, side: int = 16) -> Rows:
    colours = ["red", "green", "blue", "yellow"]
    return Rows(
        images=torch.rand(size, 3, side, side, generator=torch.Generator().manual_seed(5)),
        questions=[f"what colour is the {s}" for s in ("circle", "square", "cross")][:size],
        answers=colours[:size],
        captions=[f"a {colour} shape" for colour in colours][:size],
        ids=[f"picture {i}" for i in range(size)],
    )


def strong_perturber(hidden_size: int = 32) -> Perturber:
    """Long enough to change some codes of a random model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Perturber(hidden_size, 16, eps_max=1.0, eps_init=0.5, eps_mode="relative")
