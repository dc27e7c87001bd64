"""How hard the latest candidates were: what tau of Eq. 4 is a quantile of.

Of a micro-batch alone it would be none: one candidate is at or above every quantile of itself, and
of two or four half of them are at or above the .6 quantile. Over some hundreds .6 is .6, whatever
the batch and however many ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unigame.errors import UserError


class RecentHardness:
    """The hardness of the latest candidates, on the CPU.

    Whole minings are kept and dropped, so the content does not hang on the order of candidates
    within one: two ranks that share their candidates hold what one process would. It is therefore
    ``size`` candidates and up to one mining more. Before so many were seen it is all there were.

    Args:
        size: candidates to look back on.

    Raises:
        UserError: a size below 1.
    """

    def __init__(self, size: int = 256) -> None:
        if size < 1:
            raise UserError(f"hardness window={size!r}: must be at least 1 candidate")
        self.size = size
        self._minings: list[Tensor] = []

    def __len__(self) -> int:
        return sum(len(mining) for mining in self._minings)

    def add(self, hardness: Tensor) -> None:
        """Look at one mining's candidates, of any shape. What is not finite does not count."""
        hardness = hardness.detach().flatten().float().cpu()
        hardness = hardness[hardness.isfinite()]
        if not len(hardness):
            return
        self._minings.append(hardness.sort().values)
        while len(self) - len(self._minings[0]) >= self.size:
            self._minings.pop(0)

    @property
    def values(self) -> Tensor:
        """What is remembered, in no meaningful order."""
        return torch.cat(self._minings) if self._minings else torch.empty(0)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, in plain types."""
        return {"minings": list(self._minings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``'s content. This window's own size stays in force."""
        self._minings = []
        for mining in state["minings"]:
            self.add(mining)
