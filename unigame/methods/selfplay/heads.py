"""Which shared directions of C keep what a picture shows, and new ones for those that do not.

A direction that destroys content wins every time and teaches nothing: none of its pictures is
verified. Its gradient seldom leads back, so it starts anew, with weights of its own seed.

    M  heads of C    B  samples    K  candidates drawn per sample
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unigame.methods.selfplay.perturber import Perturber
from unigame.seeds import derive_seed


class Heads:
    """Counts of verified candidates by head, the same on all ranks.

    Args:
        count: M.
        below: a head starts anew where a smaller share of a window was verified; 0: never.
        window: candidates of one head that are judged together.
        seed: of the run; weights of new heads are derived from it.
    """

    def __init__(self, count: int, below: float, window: int, seed: int) -> None:
        self.below, self.window, self.seed = below, window, seed
        self.drawn, self.verified, self.restarts = [0] * count, [0] * count, [0] * count

    def counted(self, head_BK: Tensor | None, verified_BK: Tensor) -> Tensor:
        """Candidates of each head, and those of them that were verified, (2, M)."""
        count = len(self.drawn)
        if head_BK is None:
            head_BK = torch.zeros_like(verified_BK, dtype=torch.long)
        heads_E, verified_E = head_BK.flatten(), verified_BK.flatten().double()
        drawn_M = torch.bincount(heads_E, minlength=count).double()
        return torch.stack([drawn_M, torch.bincount(heads_E, verified_E, minlength=count)])

    def see(self, counts_2M: Tensor) -> list[int]:
        """Take note of what all ranks drew; returns the heads that are to start anew."""
        drawn_M, verified_M = counts_2M.tolist()
        lost = []
        for head, (drawn, verified) in enumerate(zip(drawn_M, verified_M, strict=True)):
            self.drawn[head] += int(drawn)
            self.verified[head] += int(verified)
            if self.drawn[head] < self.window:
                continue
            if self.verified[head] < self.below * self.drawn[head]:
                lost.append(head)
            self.drawn[head] = self.verified[head] = 0
        return lost

    def restart(
        self, head: int, perturber: Perturber, optimizer: torch.optim.Optimizer | None
    ) -> None:
        """New weights for one head, and an optimizer that takes them for a beginner's.

        The step count of Adam belongs to all heads, so second moments of zero would not be
        corrected, and the new head would leap. They stay, and are no smaller than what is usual
        here: the gradient of a lost head may have been next to nothing.
        """
        self.restarts[head] += 1
        seed = derive_seed(self.seed, "head", head, self.restarts[head])
        for weight, rows in perturber.restart(head, seed).items():
            state = {} if optimizer is None else optimizer.state.get(weight, {})
            if state:
                state["exp_avg"][rows] = 0
                second = state["exp_avg_sq"]
                second[rows] = second[rows].clamp(min=second.mean())

    def record(self, counts_2M: Tensor, add: Callable[..., None]) -> None:
        """Log the share of candidates that each head drew, and which of them were verified."""
        for head, (drawn, verified) in enumerate(zip(*counts_2M.tolist(), strict=True)):
            add(f"head_{head}_used", drawn, counts_2M[0].sum())
            add(f"head_{head}_verified", verified, drawn)

    @staticmethod
    def figures(count: int) -> tuple[str, ...]:
        """Names of what ``record`` logs, and of the restarts."""
        of_heads = [f"head_{head}_{what}" for head in range(count) for what in ("used", "verified")]
        return (*of_heads, "head_restarts", "head_overlap")

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {name: list(getattr(self, name)) for name in ("drawn", "verified", "restarts")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.drawn, self.verified, self.restarts = (
            list(state[name]) for name in ("drawn", "verified", "restarts")
        )
