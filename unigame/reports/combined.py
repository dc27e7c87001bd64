"""Scores made of several benchmarks: a weighted sum of figures, with an interval.

The benchmarks have different items, so their luck is independent: each is bootstrapped on its own,
and the resampled figures are summed. All parts are brought to 0-100 first, whatever their scale:
mixing a score on 0-1 with one on 0-100 is the classic mistake in the consistency score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unigame.errors import UserError
from unigame.reports.metrics import (
    Difference,
    Estimate,
    Metric,
    paired_figures,
    percentile_interval,
    resampled_figures,
    value_of,
)
from unigame.seeds import derive_seed


@dataclass(frozen=True)
class Part:
    """One summand: a metric and its weight in the sum, both seen on 0-100."""

    metric: Metric
    weight: float

    @property
    def factor(self) -> float:
        """What a figure on the metric's own scale is multiplied by."""
        return self.weight * 100.0 / self.metric.scale


def combine(parts: Sequence[Part]) -> Estimate:
    """The weighted sum on 0-100, with its interval; ``n`` counts the units of all parts.

    Raises:
        UserError: a metric that cannot be computed.
    """
    figures_PR = [
        part.factor * resampled_figures(part.metric, seed=derive_seed(0, "part", i))
        for i, part in enumerate(parts)
    ]
    low, high = percentile_interval(np.sum(figures_PR, axis=0))
    value = sum(part.factor * value_of(part.metric) for part in parts)
    return Estimate(value=value, low=low, high=high, n=sum(len(p.metric.units) for p in parts))


def combined_difference(parts: Sequence[Part], baseline: Sequence[Part]) -> Difference:
    """The sum of one model minus that of another: each part paired, the parts independent.

    ``clusters`` is that of the part that has fewest.

    Raises:
        UserError: the two are made of different parts, or a part cannot be paired.
    """
    ours, theirs = ([(p.metric.name, p.weight) for p in side] for side in (parts, baseline))
    if ours != theirs:
        raise UserError(f"a score made of {ours} cannot be compared with one made of {theirs}")
    paired = [
        paired_figures(part.metric, other.metric, seed=derive_seed(0, "part", i))
        for i, (part, other) in enumerate(zip(parts, baseline, strict=True))
    ]
    factors = [part.factor for part in parts]
    gaps_R = np.sum([f * p.gaps_R for f, p in zip(factors, paired, strict=True)], axis=0)
    low, high = percentile_interval(gaps_R)
    return Difference(
        value=sum(f * p.value for f, p in zip(factors, paired, strict=True)),
        low=low,
        high=high,
        n=sum(p.n for p in paired),
        clusters=min(p.clusters for p in paired),
    )
