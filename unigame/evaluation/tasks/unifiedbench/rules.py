"""How like themselves redrawn pictures are: cosines of encoders' features, and their averages.

Shapes: N pairs, D features.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unigame.reports.metrics import Metric, Unit

FULL = 4
"""An average over fewer encoders than this is not called UnifiedBench."""

Cosines = Mapping[str, float | None]  # by item id; None: the encoder gave no figure


class Averages(NamedTuple):
    """Mean cosine of each encoder, and their unweighted mean; both on the cosine's own scale."""

    averages: dict[str, float]
    overall: float


def aggregate(
    cosines: Mapping[str, Cosines],
    references: Collection[object],
    generated: Collection[object],
) -> Averages:
    """TorchUMM's averages of one run.

    Args:
        cosines: by encoder and picture id; None or NaN (the encoder failed) is dropped.
        references: ids of the reference pictures.
        generated: ids of those that were drawn; the others are left out, not counted as 0.

    Returns:
        Averages on a scale of 0 to 1. An encoder without any figure has no average.

    Raises:
        ValueError: no encoder has a figure.
    """
    drawn = {str(id) for id in references} & {str(id) for id in generated}
    averages = {}
    for encoder, by_id in cosines.items():
        values = [value for id, value in figures(by_id).items() if str(id) in drawn]
        if values:
            averages[encoder] = float(np.mean(values))
    if not averages:
        raise ValueError("no cosines to average")
    return Averages(averages, float(np.mean(list(averages.values()))))


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
