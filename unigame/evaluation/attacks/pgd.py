"""PGD on pixels: the strongest picture within a small distance that still looks the same.

    B  samples in the batch        S  side of the square image, px

Projected gradient ascent on the cross-entropy of the true answer (Madry et al., ICLR 2018, arXiv
1706.06083), through the whole differentiable path from pixels to that answer. Unlike the game's
adversary it is not bound to what the model can draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unigame.errors import UserError
from unigame.evaluation.attacks.corruptions import item_rng

if TYPE_CHECKING:
    from unigame.backbones.base import Backbone

_GRID_SLACK = 1e-3  # of an 8-bit step: pictures read from files lie on the grid up to rounding


@dataclass(frozen=True)
class PGDConfig:
    """Settings of the attack.

    Attributes:
        eps: bound on the change of every pixel value (L-infinity), images being in [0, 1].
        steps: gradient steps.
        step_size: length of each; None: 2.5 * eps / steps, which can cross the whole box.
        random_start: start at a random point of the box instead of the picture itself.
        eight_bit: round the result to 256 levels within the box, so that it is a picture that a
            file can hold.
    """

    eps: float = 8 / 255
    steps: int = 20
    step_size: float | None = None
    random_start: bool = True
    eight_bit: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1:
            raise UserError(f"eps is {self.eps}; give a bound in (0, 1], such as 8/255")
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}; an attack needs at least 1")
        if self.step_size is not None and not (
            math.isfinite(self.step_size) and self.step_size > 0
        ):
            raise UserError(f"step_size is {self.step_size}; give a length above 0")
        if self.eight_bit and self.eps * 255 < 1 - _GRID_SLACK:
            raise UserError(
                f"eps is {self.eps:.5f}, less than one of 255 levels: rounded to 8 bits nothing "
                "would change; use eight_bit=False"
            )

    @property
    def name(self) -> str:
        """Such as ``pgd_8`` for 8/255."""
        return f"pgd_{self.eps * 255:.4g}"

    @property
    def resolved_step_size(self) -> float:
        """The step size in use."""
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size


def pgd(
    backbone: Backbone,
    images: Tensor,
    questions: Sequence[str],
    answers: Sequence[str],
    config: PGDConfig,
    keys: Sequence[str] | None = None,
) -> Tensor:
    """Attacked pictures, (B, 3, S, S): of each sample the iterate with the highest loss.

    Dropout is off. Weights, their ``.grad`` and the global random state are left as they are.

    Args:
        backbone: the model; nothing of it is trained.
        images: (B, 3, S, S) in [0, 1].
        questions: one for each image.
        answers: the true ones, which the attack makes unlikely.
        config: settings.
        keys: of the samples, for the random start: the same key, the same start, in any batch.
            None: positions in the batch.

    Raises:
        UserError: the backbone's answer loss has no gradient in the picture.
    """
    clean = images.detach()
    low, high = (clean - config.eps).clamp(0, 1), (clean + config.eps).clamp(0, 1)
    x = clean
    # The picture itself is a candidate, so that the attack is never weaker than none.
    best, best_loss_B = clean.clone(), torch.full((len(clean),), -torch.inf, device=clean.device)
    if config.random_start:
        with torch.no_grad(), backbone.without_dropout():
            best_loss_B = backbone.answer_loss(clean, questions, answers).to(best_loss_B)
        x = low + (high - low) * _uniform(clean, keys)
    for step in range(config.steps + 1):
        loss_B, gradient = _ascent(backbone, x, questions, answers, last=step == config.steps)
        better_B = loss_B > best_loss_B
        best_loss_B = torch.where(better_B, loss_B, best_loss_B)
        best = torch.where(better_B[:, None, None, None], x, best)
        if gradient is not None:
            moved = x + config.resolved_step_size * gradient.sign()
            x = torch.minimum(torch.maximum(moved, low), high)
    return _to_levels(best, clean, config.eps) if config.eight_bit else best


def _ascent(
    backbone: Backbone, x: Tensor, questions: Sequence[str], answers: Sequence[str], *, last: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss of each sample, detached, and its gradient in the picture (None at the last look)."""
    with torch.set_grad_enabled(not last), backbone.without_dropout():
        x = x.detach().requires_grad_(not last)
        loss_B = backbone.answer_loss(x, questions, answers)
        if last:
            return loss_B.detach().float(), None
        if not loss_B.requires_grad:
            raise UserError(
                f"backbone family {backbone.facts.family!r} has no gradient from the answer loss "
                "to the picture, which PGD needs; leave pgd out"
            )
        (gradient,) = torch.autograd.grad(loss_B.sum(), x)
    return loss_B.detach().float(), gradient


def _uniform(images: Tensor, keys: Sequence[str] | None) -> Tensor:
    """Numbers in [0, 1) for every pixel value, by sample."""
    keys = [str(i) for i in range(len(images))] if keys is None else keys
    drawn = [item_rng("pgd", key).random(images.shape[1:], dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(drawn)).to(images)


def _to_levels(attacked: Tensor, clean: Tensor, eps: float) -> Tensor:
    """The nearest of 256 levels within eps of the clean value; with eps >= 1/255 there is one."""
    lowest = ((clean - eps).clamp(0, 1) * 255 - _GRID_SLACK).ceil()
    highest = ((clean + eps).clamp(0, 1) * 255 + _GRID_SLACK).floor()
    levels = (attacked * 255).round()
    return torch.minimum(torch.maximum(levels, lowest), highest) / 255
