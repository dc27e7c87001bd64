"""How much C pays for lost content, found while it plays.

C is to make pictures that U misreads, *subject to* a share of them being verified. The weight of
the content term is the multiplier of that constraint, and it moves as in dual ascent: up while
fewer candidates are verified than asked for, down while more are, though never below its start: C
moves faster than its price, and would be far gone before a price of nothing had risen again. A
fixed weight that suits one model lets C destroy content on another, or leaves it harmless.

    M  heads of C
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

STEP = 0.3
"""The logarithm of a weight moves by so much times what is missing of the target, or beyond it."""
MOST = 100
"""Times its start, a weight may be: further out it would take long to come back."""


class ContentWeights:
    """A weight for each head, the same on all ranks.

    Args:
        count: M.
        start: of all weights, and the least of each.
        target: share of candidates that are to be verified.
    """

    def __init__(self, count: int, start: float, target: float) -> None:
        self.start, self.target = start, target
        self.weights = [start] * count

    def tensor(self) -> Tensor:
        """The weights, (M,)."""
        return torch.tensor(self.weights)

    def see(self, counts_2M: Tensor) -> None:
        """Move by what all ranks' candidates were: how many of each head, and how many verified."""
        for head, (drawn, verified) in enumerate(zip(*counts_2M.tolist(), strict=True)):
            if drawn:
                change = STEP * (self.target - verified / drawn)
                moved = self.weights[head] * math.exp(change)
                self.weights[head] = min(max(moved, self.start), MOST * self.start)

    def restart(self, head: int) -> None:
        """The price of a new head begins where that of the first one did."""
        self.weights[head] = self.start

    def state_dict(self) -> dict[str, Any]:
        """The weights."""
        return {"weights": list(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.weights = list(state["weights"])
