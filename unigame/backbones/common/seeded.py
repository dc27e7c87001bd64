"""Pictures with a seed of their own, from any backbone, whichever generation of the contract."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from unigame.backbones.base import Backbone


def draw_seeded(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    guidance_scale: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """A picture of each prompt, (B, 3, S, S) in [0, 1], that depends on its own seed alone.

    Args:
        backbone: the model.
        prompts: what to draw.
        seeds: one for each prompt.
        guidance_scale: of classifier-free guidance; 1 is none; None is the usual one of the
            model's family (``facts``).
        temperature: of sampling; 0 draws the likeliest picture.
    """
    prompts = list(prompts)
    usual = backbone.facts.guidance_scale
    guided_by = {
        "guidance_scale": usual if guidance_scale is None else guidance_scale,
        "temperature": temperature or 1.0,
        "do_sample": temperature > 0,
    }
    if "seeds" in inspect.signature(backbone.generate).parameters:
        return backbone.generate(prompts, seeds=list(seeds), **guided_by)  # type: ignore[arg-type]
    # A backbone that takes one seed for all: one by one, or pictures would hang on the batch.
    drawn = [
        backbone.generate([prompt], seed=seed, **guided_by)  # type: ignore[arg-type]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    return torch.cat(drawn)
