"""How the game judges a reading: how hard the true answer was, and whether U would give it.

Both look at the answer's own tokens and leave the end mark out. In the mean of a one-word answer
the end mark would be half of the value: it would hide a wrong word behind a sure ending, and let C
win by attacking the ending instead of what U sees. U itself still learns the end mark.

An answer is *right* when every one of its tokens has a probability above 1/2. So each of them is
the most probable one, and greedy decoding says the answer. Of a one-word answer this is p > 1/2.
A mean over a longer answer would let its sure tokens outvote the one that is wrong; a product would
ask more of a long answer than of a short one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from unigame.backbones.base import AnswerLosses

RIGHT_ABOVE = 0.5
"""Probability above which a token counts as read right."""


def own_loss(losses: AnswerLosses) -> Tensor:
    """CE of each answer: the mean over its own tokens, (M,). Differentiable."""
    loss_MA, number_M = losses.own()
    return loss_MA.sum(-1) / number_M


def reads_right(losses: AnswerLosses) -> Tensor:
    """Whether U gives each true answer, (M,), bool. A loss that is not finite is not right."""
    loss_MA, _ = losses.own()
    return loss_MA.detach().amax(-1) < -math.log(RIGHT_ABOVE)


@dataclass(frozen=True)
class ReadAnswers:
    """What one pass of U found of B true answers, without a graph.

    Attributes:
        loss_B: what U learns: the mean CE with the end mark.
        own_B: what the game judges by, see ``own_loss``.
        right_B: see ``reads_right``.
    """

    loss_B: Tensor
    own_B: Tensor
    right_B: Tensor

    @classmethod
    def of(cls, losses: AnswerLosses) -> ReadAnswers:
        """The readings behind a pass's losses."""
        with torch.no_grad():
            return cls(losses.mean().float(), own_loss(losses).float(), reads_right(losses))

    @classmethod
    def joined(cls, parts: Sequence[ReadAnswers]) -> ReadAnswers:
        """The readings of several passes, one after another."""
        return cls(
            torch.cat([part.loss_B for part in parts]),
            torch.cat([part.own_B for part in parts]),
            torch.cat([part.right_B for part in parts]),
        )

    def __getitem__(self, rows: slice | Tensor) -> ReadAnswers:
        """Some of the rows."""
        return ReadAnswers(self.loss_B[rows], self.own_B[rows], self.right_B[rows])

    def __len__(self) -> int:
        return len(self.loss_B)
