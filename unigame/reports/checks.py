"""Does a record say one thing throughout? Its figures follow from the scores that it holds.

A figure that was edited, two runs pasted together, or a file that was cut and mended would give
tables that look like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unigame.errors import UserError
from unigame.reports.metrics import STATISTICS, Estimate, Metric, value_of

AGAIN = "run the evaluation again"
CONTRADICTS = f"the record contradicts itself; {AGAIN}"
_SLACK = 1e-6  # of the metric's scale: sums in another order


def read_estimate(entry: Any, where: str) -> Estimate:
    """The figure of an entry, with its interval; ``where`` names it in errors.

    Raises:
        UserError: value, low or high is no finite number, or n no number of units.
    """
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is {entry!r}; expected value, low, high and n")
    for key in ("value", "low", "high"):
        if not _is_number(entry.get(key)):
            raise UserError(f"{where} has {key} = {entry.get(key)!r}, not a finite number; {AGAIN}")
    n = entry.get("n")
    if not isinstance(n, int) or isinstance(n, bool) or n < 0:
        raise UserError(f"{where} has n = {n!r}, not a number of questions; {AGAIN}")
    value, low, high = (float(entry[key]) for key in ("value", "low", "high"))
    return Estimate(value=value, low=low, high=high, n=n)


def check_metric(metric: Metric, figure: Estimate, where: str) -> None:
    """See that a metric's figure is that of its units.

    Raises:
        UserError: numbers that are not finite, a unit that occurs twice, answers that are two
            things at once, or a figure that the units do not give.
    """
    _check_settings(metric, where)
    _check_units(metric, where)
    try:
        true = value_of(metric)
    except UserError as error:
        raise UserError(f"{where}: {error}; {AGAIN}") from None
    value, low, high = figure["value"], figure["low"], figure["high"]
    slack = _SLACK * max(1.0, abs(metric.scale))
    interval = f"an interval from {low:g} to {high:g}"
    wrong = ""
    if not math.isclose(true, value, rel_tol=_SLACK, abs_tol=slack):
        wrong = f"value = {value:g}, but the scores in the record give {true:g}"
    # A bootstrap's interval need not hold the figure, but it is never far from it.
    elif high < low or not 2 * low - high - slack <= true <= 2 * high - low + slack:
        wrong = f"value = {value:g} in {interval}"
    # Of scores between 0 and 1 every resample gives a figure on the metric's scale.
    elif all(0 <= count <= 1 for unit in metric.units for count in unit.counts) and not (
        -slack <= low <= high <= metric.scale + slack
    ):
        wrong = f"{interval}, beyond its scale of 0 to {metric.scale:g}"
    elif figure["n"] != len(metric.units):
        wrong = f"n = {figure['n']} and {len(metric.units)} scores"
    if wrong:
        raise UserError(f"{where} has {wrong}: {CONTRADICTS}")


def _check_settings(metric: Metric, where: str) -> None:
    if not math.isfinite(metric.scale) or metric.scale <= 0:
        raise UserError(f"{where} has scale = {metric.scale}; {AGAIN}")
    weights = metric.weights
    if weights is None:
        return
    numbers = list(weights.values()) if isinstance(weights, Mapping) else [None]
    if not all(_is_number(number) and number >= 0 for number in numbers):
        raise UserError(f"{where} has weights = {weights!r}, which are no weights; {AGAIN}")


def _check_units(metric: Metric, where: str) -> None:
    keys = set()
    # One question, answered with yes or no: one of four things, or none of them.
    yes_or_no = STATISTICS.get(metric.statistic, (1,))[0] == 4
    for unit in metric.units:
        if not all(map(math.isfinite, unit.counts)):
            raise UserError(f"{where}: the counts of {unit.id!r} are {unit.counts}; {AGAIN}")
        if (unit.id, unit.group) in keys:
            raise UserError(f"{where}: unit {unit.id!r} occurs twice; {AGAIN}")
        keys.add((unit.id, unit.group))
        if yes_or_no and not (set(unit.counts) <= {0.0, 1.0} and sum(unit.counts) <= 1):
            raise UserError(
                f"{where}: unit {unit.id!r} has the counts {unit.counts} of right and wrong "
                f"answers: {CONTRADICTS}"
            )


def check_counts(counts: Mapping[str, Any], where: str) -> None:
    """See that what was counted are numbers of things, and that the parts fit into the whole.

    Raises:
        UserError: they are not, or do not.
    """
    numbers = {name: counts[name] for name in ("items", "scored", "unparsed") if name in counts}
    for kind in ("skipped", "unscored"):
        reasons = counts.get(kind) or {}
        if not isinstance(reasons, Mapping):
            raise UserError(f"{where}: counts.{kind} is {reasons!r}, not an object; {AGAIN}")
        numbers |= {f"{kind}.{reason}": number for reason, number in reasons.items()}
    for name, number in numbers.items():
        if not _is_number(number) or number != int(number) or number < 0:
            raise UserError(f"{where}: counts.{name} is {number!r}, not a number of items; {AGAIN}")
    items = counts.get("items")
    for name in ("scored", "unparsed"):
        if items is not None and counts.get(name, 0) > items:
            raise UserError(
                f"{where}: counts.{name} is {counts[name]} of {items} items: {CONTRADICTS}"
            )


def _is_number(value: Any) -> bool:
    """A finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
