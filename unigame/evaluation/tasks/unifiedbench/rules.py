"""How like themselves redrawn pictures are: cosines of encoders' features, and their averages.

Shapes: N pairs, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from unigame.reports.metrics import Metric, Unit

FULL = 4
"""An average over fewer encoders than this is not called UnifiedBench."""

Cosines = Mapping[str, float | None]  # by item id; None: the encoder gave no figure


def figures(by_id: Cosines) -> dict[str, float]:
    """The cosines that are numbers."""
    return {id: value for id, value in by_id.items() if value is not None and math.isfinite(value)}


def cosine(first_ND: NDArray[np.float64], second_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of each row with its partner, (N,); NaN where a vector is zero or not finite."""
    lengths_N = np.linalg.norm(first_ND, axis=1) * np.linalg.norm(second_ND, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (first_ND * second_ND).sum(1) / lengths_N


def metrics(by_encoder: Mapping[str, Cosines]) -> list[Metric]:
    """The overall figure first, then each encoder's mean; all times 100."""
    units = {
        label: tuple(
            Unit(f"{label}/{id}", (value,), cluster=id, group=label)
            for id, value in figures(by_id).items()
        )
        for label, by_id in by_encoder.items()
    }
    used = [label for label, of_label in units.items() if of_label]
    full = len(used) >= FULL
    overall = Metric(
        "overall" if full else f"proxy_{len(used)}_encoders",
        f"{'UnifiedBench' if full else 'Proxy, not UnifiedBench'} ({', '.join(used) or 'nothing'})",
        tuple(unit for of_label in units.values() for unit in of_label),
        per_group=True,
    )
    return [
        overall,
        *(Metric(f"cosine_{label}", f"{label} cosine", units[label]) for label in used),
    ]


def warnings(by_encoder: Mapping[str, Cosines]) -> list[str]:
    """What a reader of the figures must know."""
    used = [label for label, by_id in by_encoder.items() if figures(by_id)]
    lines = []
    if len(used) < FULL:
        lines.append(
            f"an average over {len(used)} encoders ({', '.join(used) or 'none'}) is a proxy, not "
            "UnifiedBench, which has four; compare it only with runs of the same encoders"
        )
    for label, by_id in by_encoder.items():
        if lost := len(by_id) - len(figures(by_id)):
            lines.append(f"{label} gave no figure for {lost} pictures; they were dropped")
    return lines
