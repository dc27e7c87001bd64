"""Knowledge prompts: what they show, and how often a model draws it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from unigame.backbones.base import Backbone
from unigame.synthetic.knowledge import Fact
from unigame.synthetic.reader import Triple, read
from unigame.synthetic.world import BACKGROUNDS, JITTER_PX, RADIUS_RANGE, Scene, Thing


def triple(fact: Fact) -> Triple:
    """What the fact's picture shows."""
    return (fact.cell, fact.colour, fact.shape)


def scene_of(shown: Triple, rng: np.random.Generator) -> Scene:
    """A plain scene of one object."""
    radius = float(rng.uniform(*RADIUS_RANGE))
    thing = Thing(*shown, radius, *rng.uniform(-JITTER_PX, JITTER_PX, 2))
    return Scene((thing,), background=int(rng.integers(len(BACKGROUNDS))))


@dataclass
class _Tally:
    """Counts of what is right in a set of drawings."""

    exact: int = 0
    place: int = 0
    colour: int = 0
    shape: int = 0


@torch.no_grad()
def drawn_right(
    backbone: Backbone, prompts: list[Fact], count: int, seed: int, temperature: float = 0.7
) -> dict[str, float]:
    """Shares of drawings that show exactly the object, and that show its place, colour, shape."""
    order = np.random.default_rng([seed, 43]).permutation(len(prompts))[:count]
    chosen, tally = [prompts[i] for i in order], _Tally()
    for start in range(0, len(chosen), 120):
        block = chosen[start : start + 120]
        images = backbone.generate(
            [f.prompt for f in block], seed=seed, guidance_scale=1.0, temperature=temperature
        )
        for fact, image in zip(block, images.permute(0, 2, 3, 1).numpy(), strict=True):
            found = read(image)
            tally.exact += found == {triple(fact)}
            tally.place += fact.cell in {t[0] for t in found}
            tally.colour += fact.colour in {t[1] for t in found}
            tally.shape += fact.shape in {t[2] for t in found}
    return {name: value / len(chosen) for name, value in vars(tally).items()}
