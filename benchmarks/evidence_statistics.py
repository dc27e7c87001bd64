"""Figures over seeds: the mean of what each seed gave, and its 95 % interval.

The seed is the unit: a difference is taken within each seed, and its interval is Student's t over
seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Values = Sequence[float | None]
Metrics = Mapping[str, Mapping[str, Values]]
"""metric -> arm -> a value for each seed, None where a seed lacks it."""
CONTROL = "sft"
"""The arm that every other is compared with: fine-tuning alone."""
# Student's t, 97.5 %, by degrees of freedom; beyond the last one it is a little too wide.
T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and 95 % interval; one value has no interval, and none has no mean."""
    if not values:
        return {"mean": None, "low": None, "high": None}
    mean = statistics.mean(values)
    if len(values) == 1:
        return {"mean": round(mean, 4), "low": None, "high": None}
    t = T975[min(len(values) - 1, len(T975)) - 1]
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


def difference(arms: Mapping[str, Values], arm: str, control: str) -> dict[str, float | None]:
    """``arm`` less ``control``, seed by seed; a seed that lacks one of them is left out."""
    pairs = zip(arms[arm], arms[control], strict=True)
    return interval([a - b for a, b in pairs if a is not None and b is not None])


def differences(metrics: Metrics) -> dict[str, dict[str, dict[str, float | None]]]:
    """Of every arm to fine-tuning, by metric; empty where fine-tuning was not run."""
    return {
        metric: {
            f"{arm}-{CONTROL}": difference(arms, arm, CONTROL)
            for arm in arms
            if arm != CONTROL and CONTROL in arms
        }
        for metric, arms in metrics.items()
    }


def known(values: Values) -> list[float]:
    """Those that were measured."""
    return [value for value in values if value is not None]


def fewer(
    result: Mapping[str, Any], arm: str, metric: str | None = None, control: str = CONTROL
) -> str:
    """How many seeds have an arm, where it is not all of them.

    Of one metric: how many its difference to the control is of, where that is not all of the arm's.
    """
    metrics: Metrics = result["metrics"]
    found = max(len(known(arms[arm])) for arms in metrics.values())
    if metric is None:
        return "" if found == len(result["seeds"]) else f", {_seeds(found)}"
    pairs = zip(metrics[metric][arm], metrics[metric][control], strict=True)
    own = sum(None not in pair for pair in pairs)
    return "" if own in (0, found) else f" ({_seeds(own)})"


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"
