"""C's gradient over the micro-batches of one optimizer step: their mean.

Ranks are averaged likewise, so one process that accumulates N micro-batches moves C as N ranks do.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class GradientMean:
    """Sums gradients until they are taken.

    Attributes:
        counts: whether one of them was of rows that count, and not of stand-ins alone.
    """

    def __init__(self) -> None:
        self.counts = False
        self._total: list[Tensor] | None = None
        self._number = 0

    def add(self, gradients: Sequence[Tensor], counts: bool) -> None:
        """Those of one micro-batch; zeros where its rows are stand-ins."""
        before = self._total
        self._total = [
            gradient if before is None else before[i] + gradient
            for i, gradient in enumerate(gradients)
        ]
        self._number += 1
        self.counts = self.counts or counts

    def take(self) -> list[Tensor]:
        """The mean so far; then the next step begins."""
        assert self._total is not None, "no gradient was added"
        mean = self._total if self._number == 1 else [g / self._number for g in self._total]
        self.counts, self._total, self._number = False, None, 0
        return mean
