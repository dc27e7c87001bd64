"""Figures as functions of summed counts, for the bootstrap of ``unigame.reports.metrics``.

Arrays end in one axis of summed counts: those of the units, then how many units there were. All
leading axes (resamples, groups) are kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def ratio(top: Array, bottom: Array) -> Array:
    """``top / bottom``, and 0 where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)


def mean(sums: Array) -> Array:
    """Of (value,) over units."""
    return ratio(sums[..., 0], sums[..., -1])


def accuracy(sums: Array) -> Array:
    """(tp + tn) over questions: a reply that is neither yes nor no, four zeros, is wrong."""
    return ratio(sums[..., 0] + sums[..., 3], sums[..., -1])


def precision(sums: Array) -> Array:
    """Tp / (tp + fp)."""
    return ratio(sums[..., 0], sums[..., 0] + sums[..., 1])


def recall(sums: Array) -> Array:
    """Tp / (tp + fn)."""
    return ratio(sums[..., 0], sums[..., 0] + sums[..., 2])


def f1(sums: Array) -> Array:
    """2PR / (P + R), written so that neither P nor R needs a denominator."""
    tp, fp, fn = sums[..., 0], sums[..., 1], sums[..., 2]
    return ratio(2 * tp, 2 * tp + fp + fn)


def yes_ratio(sums: Array) -> Array:
    """Predicted yes over questions."""
    return ratio(sums[..., 0] + sums[..., 1], sums[..., -1])


# name -> how many counts a unit has, and the figure. A yes/no question is one unit.
STATISTICS: dict[str, tuple[int, Callable[[Array], Array]]] = {
    "mean": (1, mean),
    "accuracy": (4, accuracy),
    "precision": (4, precision),
    "recall": (4, recall),
    "f1": (4, f1),
    "yes_ratio": (4, yes_ratio),
}
