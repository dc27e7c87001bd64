"""Percentile bootstrap over clusters: how far a figure could be luck of the questions.

Questions about the same picture fail together, so resampling questions one by one gives intervals
that are too narrow. Whole pictures (clusters) are resampled instead, and two arms are compared on
the *same* resampled pictures (a paired difference), which cancels the difficulty of the pictures.
The intervals cover the choice of questions, not the training seed.

``unigame.reports.metrics`` bootstraps F1, group averages and the like on the same machinery.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unigame.errors import UserError

# Resamples are drawn in blocks of about this many (resample, cluster) cells: bounded memory.
_BLOCK_CELLS = 4_000_000


class Metric(TypedDict):
    """A mean with its interval: what ``results.json`` holds per arm and metric."""

    value: float
    low: float
    high: float
    n: int


class Difference(TypedDict):
    """A paired difference of two means with its interval."""

    value: float
    low: float
    high: float


def bootstrap_mean(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Metric:
    """Mean of one figure per question, with a cluster-bootstrap percentile interval.

    Args:
        values: one number per question (1 or 0 for right or wrong, or a loss), in any unit.
        clusters: the picture (or group) of each question; None: every question stands alone.
        resamples: bootstrap replicates.
        level: coverage of the interval, in (0, 1).
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        value, low and high in the unit of ``values``, and n, the number of questions.

    Raises:
        UserError: no values, a value that is not finite, or lengths that do not match.
    """
    values_Q = _checked(values, "values")
    means = _resampled_means(values_Q, clusters, resamples, seed)
    low, high = percentile_interval(means, level)
    return Metric(value=float(values_Q.mean()), low=low, high=high, n=len(values_Q))


def bootstrap_difference(
    values: ArrayLike,
    baseline: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Mean of ``values`` minus mean of ``baseline`` on the same questions, in the same order.

    Arguments and errors are those of ``bootstrap_mean``. Both arms see the same resampled clusters.
    """
    values_Q, baseline_Q = _checked(values, "values"), _checked(baseline, "baseline")
    if len(values_Q) != len(baseline_Q):
        raise UserError(
            f"a paired difference needs the same questions in both arms, got {len(values_Q)} and "
            f"{len(baseline_Q)}; evaluate both arms on the same set"
        )
    means = _resampled_means(values_Q - baseline_Q, clusters, resamples, seed)
    low, high = percentile_interval(means, level)
    return Difference(value=float(values_Q.mean() - baseline_Q.mean()), low=low, high=high)


def _checked(values: ArrayLike, name: str) -> NDArray[np.float64]:
    values_Q = np.asarray(values, dtype=np.float64).ravel()
    if values_Q.size == 0:
        raise UserError(f"{name} is empty; a mean needs at least one question")
    if not np.isfinite(values_Q).all():
        bad = int(np.flatnonzero(~np.isfinite(values_Q))[0])
        raise UserError(f"{name}[{bad}] is {values_Q[bad]}; every question needs a finite figure")
    return values_Q


def percentile_interval(figures: NDArray[np.float64], level: float) -> tuple[float, float]:
    """The central ``level`` of the resampled figures.

    Raises:
        UserError: a level outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise UserError(f"level is {level}; give a coverage between 0 and 1, such as 0.95")
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def numbered(labels: Sequence[Hashable]) -> tuple[NDArray[np.intp], int]:
    """Labels as numbers from 0 in order of appearance, and how many different ones there are."""
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels], dtype=np.intp), len(numbers)


def resampled_sums(
    sums_CK: NDArray[np.float64],
    *,
    resamples: int,
    seed: int,
    copies_C: NDArray[np.int64] | None = None,
) -> Iterator[NDArray[np.float64]]:
    """Sums over the clusters of each resample, in blocks of rows (R, K) of bounded memory.

    A resample is a multinomial count per cluster, so the whole bootstrap is matrix products.

    Args:
        sums_CK: K figures of each cluster, summed over its questions.
        resamples: bootstrap replicates; the rows of all blocks together.
        seed: of the resampling.
        copies_C: how many clusters with exactly these sums each row stands for; None: one each.
            Only their total number is drawn, which is the same distribution at less work.

    Raises:
        UserError: resamples below 1.
    """
    if resamples < 1:
        raise UserError(f"resamples is {resamples}; give at least 1, usually 2000")
    if copies_C is None:
        copies_C = np.ones(len(sums_CK), dtype=np.int64)
    num_clusters = int(copies_C.sum())
    rng = np.random.default_rng(seed)
    share_C = copies_C / num_clusters
    block = max(1, _BLOCK_CELLS // len(sums_CK))
    for start in range(0, resamples, block):
        counts_RC = rng.multinomial(num_clusters, share_C, size=min(block, resamples - start))
        yield counts_RC @ sums_CK


def _resampled_means(
    values_Q: NDArray[np.float64],
    clusters: Sequence[Hashable] | None,
    resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    """The mean under each resample of the clusters, (resamples,)."""
    if clusters is None:
        index_Q, num_clusters = np.arange(len(values_Q)), len(values_Q)
    else:
        if len(clusters) != len(values_Q):
            raise UserError(
                f"{len(clusters)} clusters for {len(values_Q)} questions; give one per question"
            )
        index_Q, num_clusters = numbered(clusters)
    sums_C = np.bincount(index_Q, weights=values_Q, minlength=num_clusters)
    sizes_C = np.bincount(index_Q, minlength=num_clusters).astype(np.float64)
    blocks = resampled_sums(np.stack([sums_C, sizes_C], axis=1), resamples=resamples, seed=seed)
    return np.concatenate([block_R2[:, 0] / block_R2[:, 1] for block_R2 in blocks])
