"""Does a record say one thing throughout? Its figures follow from the scores that it holds.

A figure that was edited, two runs pasted together, or a file that was cut and mended would give
tables that look like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unigame.errors import UserError
from unigame.reports.metrics import Metric, value_of
from unigame.reports.results import Estimate
from unigame.reports.statistics import STATISTICS

AGAIN = "run the evaluation again"
_SLACK = 1e-6  # of the metric's scale: sums in another order


def check_metric(metric: Metric, figure: Estimate, where: str) -> None:
    """See that a metric's figure is that of its units.

    Args:
        metric: as it was read.
        figure: what stands beside it.
        where: the file, benchmark and metric, for the message.

    Raises:
        UserError: numbers that are not finite, a unit that occurs twice, answers that are two
            things at once, or a figure that the units do not give.
    """
    _check_settings(metric, where)
    _check_units(metric, where)
    try:
        value = value_of(metric)
    except UserError as error:
        raise UserError(f"{where}: {error}; {AGAIN}") from None
    slack = _SLACK * max(1.0, abs(metric.scale))
    if not math.isclose(value, figure.value, rel_tol=_SLACK, abs_tol=slack):
        raise UserError(
            f"{where} has value = {figure.value:g}, but the scores in the record give {value:g}: "
            f"it contradicts itself; {AGAIN}"
        )
    # A bootstrap's interval need not hold the figure, but it is never far from it.
    width = figure.high - figure.low
    if width < 0 or not figure.low - width - slack <= value <= figure.high + width + slack:
        raise UserError(
            f"{where} has value = {figure.value:g} in an interval from {figure.low:g} to "
            f"{figure.high:g}: it contradicts itself; {AGAIN}"
        )
    # Of scores between 0 and 1 every resample gives a figure on the metric's scale.
    shares = all(0 <= count <= 1 for unit in metric.units for count in unit.counts)
    if shares and not -slack <= figure.low <= figure.high <= metric.scale + slack:
        raise UserError(
            f"{where} has an interval from {figure.low:g} to {figure.high:g}, beyond its scale of "
            f"0 to {metric.scale:g}: it contradicts itself; {AGAIN}"
        )
    if figure.n is not None and figure.n != len(metric.units):
        raise UserError(
            f"{where} has n = {figure.n!r} and {len(metric.units)} scores: it contradicts itself; "
            f"{AGAIN}"
        )


def _check_settings(metric: Metric, where: str) -> None:
    if not math.isfinite(metric.scale) or metric.scale <= 0:
        raise UserError(f"{where} has scale = {metric.scale}; {AGAIN}")
    weights = metric.weights
    if weights is None:
        return
    numbers = list(weights.values()) if isinstance(weights, Mapping) else [None]
    if not all(is_number(number) and number >= 0 for number in numbers):
        raise UserError(f"{where} has weights = {weights!r}, which are no weights; {AGAIN}")


def _check_units(metric: Metric, where: str) -> None:
    keys = set()
    for unit in metric.units:
        if not all(map(math.isfinite, unit.counts)):
            raise UserError(f"{where}: the counts of {unit.id!r} are {unit.counts}; {AGAIN}")
        if (unit.id, unit.group) in keys:
            raise UserError(f"{where}: unit {unit.id!r} occurs twice; {AGAIN}")
        keys.add((unit.id, unit.group))
        # One question, answered with yes or no: one of four things, or none of them.
        yes_or_no = STATISTICS.get(metric.statistic, (1,))[0] == 4
        if yes_or_no and not (set(unit.counts) <= {0.0, 1.0} and sum(unit.counts) <= 1):
            raise UserError(
                f"{where}: unit {unit.id!r} has the counts {unit.counts} of right and wrong "
                f"answers, which contradict each other; {AGAIN}"
            )


def check_counts(counts: Mapping[str, Any], where: str) -> None:
    """See that what was counted are numbers of things, and that the parts fit into the whole.

    Raises:
        UserError: they are not, or do not.
    """
    whole = {name: counts[name] for name in ("items", "scored", "unparsed") if name in counts}
    for kind in ("skipped", "unscored"):
        reasons = counts.get(kind) or {}
        if not isinstance(reasons, Mapping):
            raise UserError(f"{where}: counts.{kind} is {reasons!r}, not an object; {AGAIN}")
        whole |= {f"{kind}.{reason}": number for reason, number in reasons.items()}
    for name, number in whole.items():
        if not is_number(number) or number != int(number) or number < 0:
            raise UserError(f"{where}: counts.{name} is {number!r}, not a number of items; {AGAIN}")
    items = counts.get("items")
    for name in ("scored", "unparsed"):
        if items is not None and counts.get(name, 0) > items:
            raise UserError(
                f"{where}: counts.{name} is {counts[name]} of {items} items: it contradicts "
                f"itself; {AGAIN}"
            )


def is_number(value: Any) -> bool:
    """A finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
