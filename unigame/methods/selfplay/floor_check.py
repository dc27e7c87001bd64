"""Does the similarity floor tell candidates apart? Looked at over the first batches.

A floor belongs to its scorer: cosines of a model's own features sit near 1, those of CLIP between
two pictures at .6 to .95, between a picture and its text at .2 to .35. A floor that is right for
one rejects nothing, or everything, with another, and the game looks alive either way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unigame.system.say import warn

ENOUGH = 64  # candidates after which the floor is judged


class FloorCheck:
    """Collects similarities until there are enough, and warns once.

    Args:
        floor: ``clip_floor``; candidates below it are never kept.
        scorer: how similarity is measured, for the message.
        speaks: whether this process warns.
    """

    def __init__(self, floor: float, scorer: str, speaks: bool = True) -> None:
        self.floor = floor
        self.scorer = scorer
        self.speaks = speaks
        self._candidates: list[Tensor] = []
        self._clean: list[Tensor] = []
        # Nothing is below -1, and a floor there says that no filter is wanted.
        self._done = floor <= -1 or scorer == "none"

    def see(self, similarity_BK: Tensor, clean: Callable[[], Tensor] | None = None) -> None:
        """Take note of candidates, and judge the floor once there are enough.

        Args:
            similarity_BK: of the candidates.
            clean: that of the unaltered pictures to the same texts, where this says something.
        """
        if self._done:
            return
        self._candidates.append(similarity_BK.detach().flatten().float().cpu())
        if clean is not None:
            self._clean.append(clean().detach().flatten().float().cpu())
        if sum(len(part) for part in self._candidates) >= ENOUGH:
            self.judge()

    def judge(self) -> None:
        """Warn if the floor rejected none of the candidates seen so far, or all of them."""
        if self._done or not self._candidates:
            return
        self._done = True
        seen = torch.cat(self._candidates)
        below = (seen < self.floor).float().mean().item()
        if 0 < below < 1 or not self.speaks:
            return
        clean = ""
        if self._clean:
            clean = f", of unaltered pictures {_spread(torch.cat(self._clean))}"
        what = "none" if below == 0 else "all"
        advice = (
            "raise it toward the lower end of these, or say similarity=none"
            if below == 0
            else "none of them becomes a hard sample; lower it below the middle of these"
        )
        warn(
            f"clip_floor={self.floor:g} rejects {what} of these candidates: similarities "
            f"({self.scorer}) of the first {len(seen)} are {_spread(seen)}{clean}; {advice}"
        )


def _spread(values: Tensor) -> str:
    low, middle, high = values.quantile(torch.tensor([0.0, 0.5, 1.0])).tolist()
    return f"{low:.3f} to {high:.3f} (median {middle:.3f})"
