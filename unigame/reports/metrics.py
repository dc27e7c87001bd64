"""Metrics as sums over units, so that any of them can be bootstrapped and paired.

    C  clusters, resampled together        G  groups (tags, categories, subsets)
    K  counts of a unit, and how many units   R  resamples   U  units

A unit is what one score belongs to. Accuracy, F1 or a weighted mean over categories are functions
of counts *summed* over units. So a bootstrap draws clusters, sums their counts and computes the
figure again, and two models are paired by drawing the same clusters for both.

Questions about the same picture fail together. Resampling questions one by one would give intervals
that are too narrow, so whole pictures (clusters) are resampled. Intervals cover the choice of
questions, not the training seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from unigame.errors import UserError

Array = NDArray[np.float64]

# Resamples are drawn in blocks of about this many (resample, cluster) cells: bounded memory.
_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True)
class Unit:
    """What one score belongs to: a question, a group of questions, a picture.

    Attributes:
        id: the same in every model's record, so that two records can be paired.
        counts: (value,) for a mean; (tp, fp, fn, tn) for the statistics of a yes/no question.
        cluster: units of one cluster are resampled together; empty: alone.
        group: tag, category, subset or encoder, for metrics that average over groups.
    """

    id: str
    counts: tuple[float, ...]
    cluster: str = ""
    group: str = ""


@dataclass(frozen=True)
class Metric:
    """One figure: a statistic of summed counts, over all units or averaged over groups.

    Attributes:
        name: key in the record, such as ``"g_acc"``.
        label: for people, such as ``"G-Acc"``.
        units: what is averaged.
        statistic: mean, accuracy, precision, recall, f1 or yes_ratio.
        per_group: compute it in each group and average the groups.
        weights: of the groups; renormalised over the groups present. None: equal.
        scale: 100 for percentages, 1 for scores on a scale of their own.
    """

    name: str
    label: str
    units: tuple[Unit, ...]
    statistic: str = "mean"
    per_group: bool = False
    weights: Mapping[str, float] | None = None
    scale: float = 100.0


class Estimate(TypedDict):
    """A figure on the metric's scale with its interval; n units."""

    value: float
    low: float
    high: float
    n: int


class Difference(Estimate):
    """A paired difference with its interval: ``n`` units are in both records.

    They lie in ``clusters`` clusters. An interval over a handful of them says little, whatever its
    width.
    """

    clusters: int


# ---- statistics: functions of summed counts (..., K), the last of which is how many units --------


def ratio(top: Array, bottom: Array) -> Array:
    """``top / bottom``, and 0 where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)


def _f1(sums: Array) -> Array:
    """2PR / (P + R), written so that neither P nor R needs a denominator."""
    tp, fp, fn = sums[..., 0], sums[..., 1], sums[..., 2]
    return ratio(2 * tp, 2 * tp + fp + fn)


# name -> how many counts a unit has, and the figure. A yes/no question is one unit: (tp, fp, fn,
# tn). A reply that is neither yes nor no has four zeros, so it is not accurate.
STATISTICS: dict[str, tuple[int, Callable[[Array], Array]]] = {
    "mean": (1, lambda s: ratio(s[..., 0], s[..., -1])),
    "accuracy": (4, lambda s: ratio(s[..., 0] + s[..., 3], s[..., -1])),
    "precision": (4, lambda s: ratio(s[..., 0], s[..., 0] + s[..., 1])),
    "recall": (4, lambda s: ratio(s[..., 0], s[..., 0] + s[..., 2])),
    "f1": (4, _f1),
    "yes_ratio": (4, lambda s: ratio(s[..., 0] + s[..., 1], s[..., -1])),
}


# ---- metrics as arrays ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """A metric's units as arrays: summed counts of each cluster and group."""

    sums_CGK: Array
    weights_G: Array
    metric: Metric

    def figures(self, sums_RGK: Array) -> Array:
        """The metric from summed counts, (R,), on its scale; groups without units are left out."""
        figures_RG = STATISTICS[self.metric.statistic][1](sums_RGK)
        weights_RG = self.weights_G * (sums_RGK[..., -1] > 0)
        return self.metric.scale * ratio((weights_RG * figures_RG).sum(-1), weights_RG.sum(-1))

    def point(self) -> float:
        """The metric itself."""
        return float(self.figures(self.sums_CGK.sum(axis=0, keepdims=True))[0])


def _table(metric: Metric, index_U: NDArray[np.intp], num_clusters: int) -> _Table:
    """Sum counts by cluster and group; ``index_U`` is the cluster of each unit."""
    width = _count_width(metric)
    group_U, names = np.zeros(len(metric.units), dtype=np.intp), [""]
    if metric.per_group:
        labels = [unit.group for unit in metric.units]
        group_U, names = _numbered(labels)[0], list(dict.fromkeys(labels))
    cell_U = index_U * len(names) + group_U
    counts_UK = np.ones((len(metric.units), width + 1))
    counts_UK[:, :width] = [unit.counts for unit in metric.units]
    if not np.isfinite(counts_UK).all():
        bad = metric.units[int(np.flatnonzero(~np.isfinite(counts_UK).all(axis=1))[0])]
        raise UserError(f"{metric.name}: the counts of {bad.id!r} are {bad.counts}, not finite")
    cells = num_clusters * len(names)
    sums = [np.bincount(cell_U, weights=counts_UK[:, k], minlength=cells) for k in range(width + 1)]
    sums_CGK = np.stack(sums, axis=-1).astype(np.float64)
    sums_CGK = sums_CGK.reshape(num_clusters, len(names), width + 1)
    return _Table(sums_CGK, _group_weights(metric, names), metric)


def _count_width(metric: Metric) -> int:
    """Counts of each unit, as the statistic takes them."""
    if metric.statistic not in STATISTICS:
        raise UserError(
            f"{metric.name}: unknown statistic {metric.statistic!r}; "
            f"choose from {', '.join(STATISTICS)}"
        )
    if not metric.units:
        raise UserError(f"{metric.name} has no figure: no item was scored")
    width = STATISTICS[metric.statistic][0]
    for unit in metric.units:
        if len(unit.counts) != width:
            raise UserError(
                f"{metric.name}: unit {unit.id!r} has {len(unit.counts)} counts; "
                f"{metric.statistic} takes {width}"
            )
    return width


def _group_weights(metric: Metric, names: Sequence[str]) -> Array:
    if not metric.per_group or metric.weights is None:
        return np.ones(len(names))
    missing = [name for name in names if name not in metric.weights]
    if missing:
        raise UserError(
            f"{metric.name}: no weight for group {missing[0]!r}; "
            f"weights are for {', '.join(metric.weights)}"
        )
    return np.array([metric.weights[name] for name in names], dtype=np.float64)


def _clusters(units: Sequence[Unit]) -> tuple[NDArray[np.intp], int]:
    """The cluster of each unit as a number; a unit without one stands alone, whatever its id."""
    return _numbered([(unit.cluster, "") if unit.cluster else ("", unit.id) for unit in units])


ALONE = "one picture or group"
"""What tables say in the place of the interval of such a figure."""


def num_clusters(metric: Metric) -> int:
    """In how many clusters the units lie; an interval over one of them has no width."""
    return _clusters(metric.units)[1]


def _numbered(labels: Sequence[Hashable]) -> tuple[NDArray[np.intp], int]:
    """Labels as numbers from 0 in order of appearance, and how many different ones there are."""
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels], dtype=np.intp), len(numbers)


# ---- figures with intervals ----------------------------------------------------------------------


def value_of(metric: Metric) -> float:
    """The figure alone, on the metric's scale.

    Raises:
        UserError: no units, counts that do not fit the statistic, or a group without weight.
    """
    return _table(metric, *_clusters(metric.units)).point()


def estimate(metric: Metric, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Estimate:
    """The figure with a cluster-bootstrap percentile interval, on the metric's scale.

    A resample may leave a group empty: the weights are then renormalised over the others, as they
    are where the data lack a group.

    Args:
        metric: what to estimate.
        resamples: bootstrap replicates.
        level: coverage of the interval, in (0, 1).
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        UserError: as ``value_of``, or an impossible level or number of resamples.
    """
    table = _table(metric, *_clusters(metric.units))
    low, high = percentile_interval(_resampled([table], resamples, seed)[0], level)
    return Estimate(value=table.point(), low=low, high=high, n=len(metric.units))


def resampled_figures(metric: Metric, resamples: int = 2000, seed: int = 0) -> Array:
    """The figure under each resample, (R,): for scores made of several metrics.

    Raises:
        UserError: as ``value_of``.
    """
    return _resampled([_table(metric, *_clusters(metric.units))], resamples, seed)[0]


def difference(
    metric: Metric,
    baseline: Metric,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """``metric`` minus ``baseline`` on the units that both have, with a paired interval.

    Units are matched by id and group. Both sides see the same resampled clusters, which cancels
    how hard the questions are. The clusters are those of ``metric``.

    Raises:
        UserError: metrics of different kinds, an id that occurs twice, or no unit in common.
    """
    paired = paired_figures(metric, baseline, resamples, seed)
    low, high = percentile_interval(paired.gaps_R, level)
    return Difference(value=paired.value, low=low, high=high, n=paired.n, clusters=paired.clusters)


@dataclass(frozen=True)
class Paired:
    """A difference on shared units: as it is, and under each resample, (R,)."""

    value: float
    gaps_R: Array
    n: int
    clusters: int


def paired_figures(
    metric: Metric, baseline: Metric, resamples: int = 2000, seed: int = 0
) -> Paired:
    """What ``difference`` takes its interval from: for scores made of several metrics.

    Raises:
        UserError: as ``difference``.
    """
    metric, baseline = _shared_units(metric, baseline)
    index_U, num_clusters = _clusters(metric.units)
    ours, theirs = (_table(side, index_U, num_clusters) for side in (metric, baseline))
    ours_R, theirs_R = _resampled([ours, theirs], resamples, seed)
    value = ours.point() - theirs.point()
    return Paired(value, ours_R - theirs_R, n=len(metric.units), clusters=num_clusters)


def percentile_interval(figures_R: Array, level: float = 0.95) -> tuple[float, float]:
    """The central ``level`` of the resampled figures.

    Raises:
        UserError: a level outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise UserError(f"level is {level}; give a coverage between 0 and 1, such as 0.95")
    low, high = np.quantile(figures_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _shared_units(metric: Metric, baseline: Metric) -> tuple[Metric, Metric]:
    """Both metrics cut down to the units that they share, in the order of ``metric``."""
    for name in ("statistic", "per_group", "weights", "scale"):
        ours, theirs = getattr(metric, name), getattr(baseline, name)
        if ours != theirs:
            raise UserError(f"{metric.name}: {name} is {ours!r} in one record, {theirs!r} in one")
    theirs_by_key = _by_key(baseline)
    pairs = [
        (unit, theirs_by_key[key]) for key, unit in _by_key(metric).items() if key in theirs_by_key
    ]
    if not pairs:
        raise UserError(
            f"{metric.name}: the records have no question in common; "
            "evaluate both models on the same data"
        )
    ours_units, their_units = zip(*pairs, strict=True)
    return replace(metric, units=ours_units), replace(baseline, units=their_units)


def _by_key(metric: Metric) -> dict[tuple[str, str], Unit]:
    found = {(unit.id, unit.group): unit for unit in metric.units}
    if len(found) < len(metric.units):
        times = Counter((unit.id, unit.group) for unit in metric.units)
        twice = times.most_common(1)[0][0][0]
        raise UserError(f"{metric.name}: unit {twice!r} occurs twice, so it cannot be paired")
    return found


def _resampled(tables: Sequence[_Table], resamples: int, seed: int) -> list[Array]:
    """Each table's figure under the same resamples of its clusters, (R,) each.

    Clusters with equal sums are interchangeable, so each kind is drawn once, with its number: ten
    thousands of pictures with a few right and wrong answers are a few hundred kinds.
    """
    flat_CM = np.concatenate([t.sums_CGK.reshape(len(t.sums_CGK), -1) for t in tables], axis=1)
    # Rounded: 0.3 + 0.6 and 0.9 are one kind.
    kinds_CM, copies_C = np.unique(flat_CM.round(10), axis=0, return_counts=True)
    widths = np.cumsum([t.sums_CGK[0].size for t in tables])[:-1]
    figures: list[list[Array]] = [[] for _ in tables]
    for sums_RM in _resampled_sums(kinds_CM, copies_C, resamples, seed):
        for table, found, part in zip(
            tables, figures, np.split(sums_RM, widths, axis=1), strict=True
        ):
            found.append(table.figures(part.reshape(-1, *table.sums_CGK.shape[1:])))
    return [np.concatenate(found) for found in figures]


def _resampled_sums(
    sums_CK: Array, copies_C: NDArray[np.int64], resamples: int, seed: int
) -> Iterator[Array]:
    """Sums over the clusters of each resample, in blocks of rows (R, K) of bounded memory.

    A resample is a multinomial count per cluster, so the whole bootstrap is matrix products. Row c
    stands for ``copies_C[c]`` clusters with these sums: only their total number is drawn, which is
    the same distribution at less work.
    """
    if resamples < 1:
        raise UserError(f"resamples is {resamples}; give at least 1, usually 2000")
    num_clusters = int(copies_C.sum())
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // len(sums_CK))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield rng.multinomial(num_clusters, copies_C / num_clusters, size=size) @ sums_CK


# ---- the record form -----------------------------------------------------------------------------


def to_json(metric: Metric, figure: Estimate | None = None) -> dict[str, Any]:
    """The metric as JSON values: its figure with interval, and its units column by column.

    Args:
        metric: what to write.
        figure: its estimate, where it has been computed; None: computed here.

    Raises:
        UserError: as ``estimate``.
    """
    units = metric.units
    columns = {
        "id": [unit.id for unit in units],
        "cluster": [unit.cluster for unit in units] if any(u.cluster for u in units) else None,
        "group": [unit.group for unit in units] if any(u.group for u in units) else None,
        "counts": [
            # Whole counts without their ".0": most of a record is zeros and ones.
            [int(count) if float(count).is_integer() else float(count) for count in column]
            for column in zip(*(unit.counts for unit in units), strict=True)
        ],
    }
    return {
        "label": metric.label,
        **(figure or estimate(metric)),
        "clusters": num_clusters(metric),
        "scale": metric.scale,
        "statistic": metric.statistic,
        "per_group": metric.per_group,
        "weights": None if metric.weights is None else dict(metric.weights),
        "units": columns,
    }


def from_json(name: str, entry: Any, where: str = "record") -> Metric:
    """A metric from its record form; ``where`` names the file in errors.

    Raises:
        UserError: a part is missing or of the wrong kind.
    """
    try:
        units = entry["units"]
        ids, counts = units["id"], list(zip(*units["counts"], strict=True))
        clusters = units.get("cluster") or [""] * len(ids)
        groups = units.get("group") or [""] * len(ids)
        return Metric(
            name=name,
            label=str(entry["label"]),
            units=tuple(
                Unit(str(id), tuple(map(float, row)), str(cluster), str(group))
                for id, row, cluster, group in zip(ids, counts, clusters, groups, strict=True)
            ),
            statistic=str(entry["statistic"]),
            per_group=bool(entry["per_group"]),
            weights=entry["weights"],
            scale=float(entry["scale"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{where}: metric {name!r} is damaged ({reason}); run the evaluation again"
        ) from None
