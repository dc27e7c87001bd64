"""Flow matching as BAGEL was trained with it: straight lines from a picture to noise.

At a noise level t in [0, 1] a latent is ``(1 - t) clean + t noise``; the model predicts the
velocity ``noise - clean``.

Shape suffixes: B samples, C channels, h and w sides of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Noise levels at which an evaluating model's loss is taken: the same every time.
EVALUATION_LEVELS = (0.125, 0.375, 0.625, 0.875)


def noised(clean_BChw: Tensor, noise_BChw: Tensor, level_B: Tensor) -> Tensor:
    """x_t of each sample."""
    t = level_B.to(clean_BChw).view(-1, 1, 1, 1)
    return (1 - t) * clean_BChw + t * noise_BChw


def clean(noised_BChw: Tensor, velocity_BChw: Tensor, level_B: Tensor) -> Tensor:
    """The picture that a velocity points away from, x0 = x_t - t v."""
    return noised_BChw - level_B.to(noised_BChw).view(-1, 1, 1, 1) * velocity_BChw


def shifted(level: Tensor, shift: float) -> Tensor:
    """Levels moved toward noise by ``shift`` (1: as they are); never above 1, pure noise.

    By rounding 1 itself can come out a little above, where no interval of guidance holds it.
    """
    return (shift * level / (1 + (shift - 1) * level)).clamp(max=1.0)


def fixed_noise(shape: Sequence[int], like: Tensor) -> Tensor:
    """The one standard normal noise of all deterministic uses, without batch dimension."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(like)


def guided(wanted_BChw: Tensor, plain_BChw: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, scaled back to the length of the velocity with the caption.

    The authors' "global" renormalisation, picture by picture: it only ever shortens.

    Args:
        wanted_BChw: velocities with the captions.
        plain_BChw: without them.
        scale: how far beyond ``wanted`` to go, seen from ``plain``; 1: not at all.
    """
    pushed = plain_BChw + scale * (wanted_BChw - plain_BChw)
    lengths = [v.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for v in (wanted_BChw, pushed)]
    return pushed * (lengths[0] / (lengths[1] + 1e-8)).clamp(max=1.0)


def sample(
    noise_BChw: Tensor,
    velocity: Callable[[Tensor, Tensor, bool], Tensor],
    *,
    steps: int,
    shift: float,
    interval: Sequence[float],
) -> Tensor:
    """Latents by Euler steps from noise to a picture.

    Args:
        noise_BChw: where to start.
        velocity: of latents at levels (B,), and whether it is guided there.
        steps: points in time, both ends included.
        shift: of these points toward noise.
        interval: levels above the first and up to the second are guided.
    """
    latents = noise_BChw
    levels = shifted(torch.linspace(1, 0, steps), shift).tolist()
    for now, then in zip(levels, levels[1:], strict=False):
        level_B = torch.full((len(latents),), now)
        speed = velocity(latents, level_B, interval[0] < now <= interval[1])
        latents = latents - (now - then) * speed
    return latents
