"""Several models' records side by side: which figures, which differences, and which not.

A difference to the baseline is taken only between like and like: the same data, prompt and parser
variant, and scorer. Otherwise it is left out and the reason is a note, because a difference of two
judges or two samples of questions would look exactly like a difference of two models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from unigame.errors import UserError
from unigame.reports.checks import AGAIN, CONTRADICTS, read_estimate
from unigame.reports.combined import Part, combined_difference
from unigame.reports.metrics import (
    Difference,
    Estimate,
    difference,
    num_clusters,
    value_of,
)
from unigame.reports.records import BenchmarkRecord, Record, unparsed_warning

FEW = 6
"""Figures without a difference that a sentence names; more are counted."""
MIN_CLUSTERS = 10
"""With fewer pictures or groups an interval means nothing, so no difference is shown."""


@dataclass(frozen=True)
class Column:
    """A column of the tables: a metric of a benchmark (None: its headline), or a score."""

    title: str
    benchmark: str
    metric: str | None = None
    digits: int | None = None


SUMMARY = "summary"
TABLES: dict[str, tuple[Column, ...]] = {
    "Understanding": (
        Column("VQAv2", "vqav2"),
        Column("MMMU", "mmmu"),
        Column("MMBench", "mmbench"),
        Column("POPE", "pope"),
        Column("overall", SUMMARY, "understanding"),
    ),
    "Generation and consistency": (
        Column("GenEval", "geneval"),
        Column("DPG", "dpg"),
        Column("UnifiedBench", "unifiedbench", digits=2),
        Column("WISE", "wise"),
        Column("consistency", SUMMARY, "consistency", digits=2),
    ),
    "Out of distribution and adversarial": (
        Column("NaturalBench", "naturalbench"),
        Column("AdVQA", "advqa"),
    ),
    "Robustness": (
        Column("clean", "robustness", "clean"),
        Column("redrawn", "robustness", "redrawn"),
        Column("fresh adversary", "robustness", "adversary"),
        Column("PGD 2/255", "robustness", "pgd_2"),
        Column("PGD 4/255", "robustness", "pgd_4"),
        Column("PGD 8/255", "robustness", "pgd_8"),
        Column("corruptions", "robustness", "corruptions"),
    ),
    "Synthetic world": (
        Column("out of distribution", "ood"),
        Column("OOD without counting", "ood", "accuracy_no_count"),
        Column("redrawn without attack", "attack", "redrawn"),
        Column("under a fresh attack", "attack"),
        Column("new task", "new_task"),
    ),
}


@dataclass(frozen=True)
class Cell:
    """A figure and its difference to the baseline, or why there is none.

    Attributes:
        name: of the metric or score.
        label: the same for people.
        scale: 100 for percentages.
        digits: decimal places; None: one of percentages, three of scores on another scale.
        judged: whether more is better; of a yes ratio it is neither.
        figure: None where the record has none.
        gap: minus the baseline's.
        reason: why there is a figure and no difference.
        alone: whether the figure is about one picture or group, and so has no interval.
    """

    name: str
    label: str
    scale: float = 100.0
    digits: int | None = None
    judged: bool = True
    figure: Estimate | None = None
    gap: Difference | None = None
    reason: str = ""
    alone: bool = False

    @property
    def unit(self) -> str:
        """What follows a heading over figures like this."""
        return ", %" if self.scale == 100 else ""

    @property
    def mark(self) -> int:
        """+1 where the difference is a measured gain, -1 where a measured loss, 0 otherwise.

        Measured: its interval excludes zero. Nothing else decides on marks, so no table can be
        kinder than another.
        """
        if self.gap is None or not self.judged:
            return 0
        return (self.gap["low"] > 0) - (self.gap["high"] < 0)

    def show(self, value: float, *, signed: bool = False) -> str:
        """A figure of this metric as text, without a minus sign before a rounded zero."""
        digits = (1 if self.scale == 100 else 3) if self.digits is None else self.digits
        return f"{value:{'+' if signed else ''}z.{digits}f}"


@dataclass(frozen=True)
class Grid:
    """A table: ``cells[row][column]``."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found.

    Attributes:
        labels: of the models, in order.
        baseline: which of them the differences are to.
        tables: as in the paper: a row for each model, a column for each benchmark.
        details: a table for each benchmark: a row for each metric, a column for each model.
        notes: what a reader must know before believing the tables.
        detail_notes: and the details.
        verdict: a sentence above the notes; empty: none.
    """

    labels: tuple[str, ...]
    baseline: int
    tables: tuple[Grid, ...]
    details: Mapping[str, Grid]
    notes: tuple[str, ...]
    detail_notes: tuple[str, ...] = ()
    verdict: str = ""

    def marked(self, row: int, mark: int) -> list[str]:
        """Columns of the tables where a model has a difference with this mark (0: unmarked)."""
        return [
            title
            for grid in self.tables
            for title, cell in zip(grid.columns, grid.cells[row], strict=True)
            if cell.gap is not None and cell.mark == mark
        ]


def verdict(comparison: Comparison, row: int) -> str:
    """One sentence on a model against the baseline, from the marks alone: whatever came out."""
    name, base = comparison.labels[row], comparison.labels[comparison.baseline]
    won, lost = (listed(comparison.marked(row, mark)) for mark in (1, -1))
    same = comparison.marked(row, 0)
    if not (won or same or lost):
        return f"No verdict: there is no difference between {name} and {base} with an interval."
    parts = [
        f"{name} beat {base} on: {won}" if won else f"{name} did not beat {base} on any figure"
    ]
    if same:
        number = f"{len(same)} {'others' if won or lost else 'figures'}"
        told = f": {listed(same)}" if len(same) <= FEW else f" {number}"
        parts.append(f"no measurable difference on{told}")
    parts += [f"worse than {base} on: {lost}"] if lost else []
    return "; ".join(parts) + "."


def listed(names: Sequence[str]) -> str:
    """``"a, b and c"``."""
    return " and ".join([*filter(None, [", ".join(names[:-1])]), *names[-1:]])


@dataclass
class _Comparer:
    """Records side by side. ``said``: of what and what, and the models of which it is true."""

    records: Sequence[Record]
    labels: tuple[str, ...]
    baseline: int
    said: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)
    done: dict[tuple[int, str, str], Cell] = field(default_factory=dict)

    def note(self, what: str, row: int, text: str) -> None:
        """Something of one model that a reader must know."""
        self.said.setdefault((what, text), {})[self.labels[row]] = None

    def notes(self) -> Iterator[str]:
        """What was noted, once for all models of which it is true."""
        base = self.labels[self.baseline]
        for (what, text), found in self.said.items():
            who = ", ".join(found)
            if len(found) == len(self.labels):
                who = "every model"
            elif len(found) == len(self.labels) - 1 > 1 and base not in found:
                who = f"every model but {base}"
            yield f"{what}, {who}: {text}"

    def benchmark_cell(self, row: int, name: str, metric: str | None = None) -> Cell:
        """A benchmark's figure in record ``row``, with its difference to the baseline's."""
        ours = self.records[row].benchmarks.get(name)
        key = metric or (ours.headline if ours else "")
        if ours is None or key not in ours.metrics:
            return Cell(key, key)
        if (row, name, key) not in self.done:
            self.done[row, name, key] = self._benchmark_cell(row, ours, key)
        return self.done[row, name, key]

    def _benchmark_cell(self, row: int, ours: BenchmarkRecord, key: str) -> Cell:
        base, metric = self.records[self.baseline].benchmarks.get(ours.name), ours.metrics[key]
        judged = not key.startswith("yes_ratio")
        cell = Cell(key, metric.label, metric.scale, judged=judged, figure=ours.figures[key])
        cell = replace(cell, alone=num_clusters(metric) == 1)
        if row == self.baseline or base is None:
            return cell
        reasons = what_differs(ours, base)
        if not reasons and key not in base.metrics:
            reasons.append(f"{self.labels[self.baseline]} has no {metric.label}")
        what = ours.title if key == ours.headline else f"{ours.title} ({metric.label})"
        return self._paired(cell, what, row, reasons, lambda: difference(metric, base.metrics[key]))

    def summary_cell(self, row: int, name: str) -> Cell:
        """The consistency score or the understanding mean, paired part by part."""
        record, base_record = self.records[row], self.records[self.baseline]
        ours, base = (_summary(r, name) for r in (record, base_record))
        cell = Cell(name, name)
        if ours.get("value") is None:
            if ours.get("reason"):
                self.note(f"No {name} score", row, f"{ours['reason']}.")
            return cell
        cell = replace(cell, figure=read_estimate(ours, f"{record.path}: {name}"))
        mine = _parts(record, name)
        _check_sum([part for _, part in mine.values()], cell, record)
        alone = any(num_clusters(part.metric) == 1 for _, part in mine.values())
        cell = replace(cell, alone=alone)
        if row == self.baseline or base.get("value") is None:
            return cell
        theirs = _parts(base_record, name)
        reasons = [
            f"its part {benchmark.title} differs"
            for key, (benchmark, _) in mine.items()
            if key not in theirs or what_differs(benchmark, theirs[key][0])
        ]
        ours_parts, base_parts = ([part for _, part in side.values()] for side in (mine, theirs))
        return self._paired(
            cell, name, row, reasons, lambda: combined_difference(ours_parts, base_parts)
        )

    def _paired(
        self,
        cell: Cell,
        what: str,
        row: int,
        reasons: list[str],
        compute: Callable[[], Difference],
    ) -> Cell:
        """The cell with its difference, or with the reason why it has none."""
        reason, gap = "; ".join(reasons), None
        if not reason:
            try:
                gap = compute()
            except UserError as error:
                reason = str(error)
        if gap is not None and gap["clusters"] < MIN_CLUSTERS:
            reason = (
                f"only {gap['clusters']} pictures or groups in common, "
                f"at least {MIN_CLUSTERS} needed"
            )
        if gap is None or reason:
            self.note(f"No difference for {what}", row, f"{reason}.")
            return replace(cell, reason=reason)
        assert cell.figure is not None
        if gap["n"] < cell.figure["n"]:
            partial = f"the difference is over {gap['n']} of {cell.figure['n']}"
            self.note(what, row, f"{partial}, those in both records.")
        return replace(cell, gap=gap)

    def column(self, column: Column) -> list[Cell]:
        """Every model's cell of a column."""
        cells = [
            self.summary_cell(row, str(column.metric))
            if column.benchmark == SUMMARY
            else self.benchmark_cell(row, column.benchmark, column.metric)
            for row in range(len(self.records))
        ]
        if column.digits is None:
            return cells
        return [replace(cell, digits=column.digits) for cell in cells]

    def table(self, title: str, columns: Sequence[Column]) -> Grid | None:
        """One of the tables, without the columns that no record has."""
        filled = [(column.title, self.column(column)) for column in columns]
        filled = [(title, cells) for title, cells in filled if any(c.figure for c in cells)]
        if not filled:
            return None
        titles, cells_by_column = zip(*filled, strict=True)
        return Grid(title, titles, self.labels, tuple(zip(*cells_by_column, strict=True)))

    def details(self, name: str) -> Grid:
        """Every metric of one benchmark."""
        found = [r.benchmarks[name] for r in self.records if name in r.benchmarks]
        labels = {key: metric.label for record in found for key, metric in record.metrics.items()}
        rows = range(len(self.records))
        cells = tuple(tuple(self.benchmark_cell(row, name, key) for row in rows) for key in labels)
        return Grid(found[0].title, self.labels, tuple(labels.values()), cells)


def compare(records: Sequence[Record], labels: Sequence[str], baseline: int = 0) -> Comparison:
    """Lay records side by side.

    Args:
        records: at least two.
        labels: one for each, all different.
        baseline: index of the record that differences are taken to.

    Raises:
        UserError: a record is damaged, contradicts itself, or contradicts another.
    """
    _check_agreement(records)
    comparer = _Comparer(records, tuple(labels), baseline)
    names = dict.fromkeys(name for record in records for name in record.benchmarks)
    known = {column.benchmark for columns in TABLES.values() for column in columns}
    titles = {n: r.benchmarks[n].title for n in names for r in records if n in r.benchmarks}
    further = tuple(Column(titles[name], name) for name in names if name not in known)
    wanted = {**TABLES, "Further benchmarks": further}
    tables = [comparer.table(title, columns) for title, columns in wanted.items()]
    _count(comparer)
    noted = tuple(comparer.notes())
    return Comparison(
        labels=tuple(labels),
        baseline=baseline,
        tables=tuple(filter(None, tables)),
        details={name: comparer.details(name) for name in names},
        notes=(
            *_same_weights(records, labels),
            *_other_generation(comparer),
            *noted,
            *_trained(records, labels),
        ),
        detail_notes=tuple(note for note in comparer.notes() if note not in noted),
    )


def what_differs(ours: BenchmarkRecord, base: BenchmarkRecord) -> list[str]:
    """Why the figures of two records of a benchmark cannot be subtracted; empty if they can."""
    reasons = []
    # Sets of items are told apart by content, or where it is not known, by origin.
    data = [r.dataset.get("fingerprint") or dict(r.dataset) for r in (ours, base)]
    if data[0] != data[1]:
        sizes = [record.counts.get("items") for record in (ours, base)]
        limited = f" ({sizes[0]} and {sizes[1]} items)" if sizes[0] != sizes[1] else ""
        reasons.append(f"the data differ{limited}")
    elif ours.pictures and base.pictures and ours.pictures != base.pictures:
        reasons.append("the questions are the same, but pictures differ")
    for what, mine, theirs in (
        ("variant", ours.variant, base.variant),
        ("scorer", _without_address(ours.scorer), _without_address(base.scorer)),
    ):
        reasons += [
            f"{what} {key}: {one} and {two}" for key, one, two in _differences(mine, theirs)
        ]
    return reasons


def _without_address(scorer: Mapping[str, Any]) -> dict[str, Any]:
    """A judge whose server has moved is the same judge; asked in another way it is not."""
    settings = scorer.get("judge_settings")
    if not isinstance(settings, Mapping):
        return dict(scorer)
    asked = {name: value for name, value in settings.items() if name != "base_url"}
    return {**scorer, "judge_settings": asked}


def _differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys((*ours, *theirs)):
        one, two = ours.get(key), theirs.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            yield from ((f"{key}.{inner}", a, b) for inner, a, b in _differences(one, two))
        elif one != two:
            yield key, one, two


def _summary(record: Record, name: str) -> Mapping[str, Any]:
    found = record.summary.get(name)
    return found if isinstance(found, Mapping) else {}


def _parts(record: Record, name: str) -> dict[str, tuple[BenchmarkRecord, Part]]:
    """What a combined score is made of, by benchmark."""
    try:
        found = {}
        for part in _summary(record, name)["parts"]:
            benchmark = record.benchmarks[part["benchmark"]]
            summand = Part(benchmark.metrics[part["metric"]], float(part["weight"]))
            found[part["benchmark"]] = (benchmark, summand)
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{record.path}: the parts of the {name} score are damaged ({error!r}); {AGAIN}"
        ) from None


def _check_sum(parts: Sequence[Part], cell: Cell, record: Record) -> None:
    """A combined score is the sum of its parts."""
    assert cell.figure is not None
    value, said = sum(part.factor * value_of(part.metric) for part in parts), cell.figure["value"]
    if not math.isclose(value, said, rel_tol=1e-6, abs_tol=1e-4):
        raise UserError(
            f"{record.path}: the {cell.name} score is {said:g}, but its parts give {value:g}: "
            f"{CONTRADICTS}"
        )


def _check_agreement(records: Sequence[Record]) -> None:
    """Records of the same items say how many there are alike."""
    sizes: dict[tuple[str, str], tuple[Any, Record]] = {}
    for record in records:
        for benchmark in record.benchmarks.values():
            fingerprint, items = benchmark.dataset.get("fingerprint"), benchmark.counts.get("items")
            if not fingerprint or items is None:
                continue
            known, other = sizes.setdefault((benchmark.name, str(fingerprint)), (items, record))
            if known != items:
                raise UserError(
                    f"{other.path} has {known} items of {benchmark.name} and {record.path} has "
                    f"{items}, both with the fingerprint {fingerprint}: they contradict each "
                    "other; run the evaluations again"
                )


# ---- notes ---------------------------------------------------------------------------------------


def _same_weights(records: Sequence[Record], labels: Sequence[str]) -> Iterator[str]:
    for i, record in enumerate(records):
        for other, label in zip(records[:i], labels, strict=False):
            if record.weights == other.weights and record.weights[0]:
                yield f"{label} and {labels[i]} are the same weights."


def _other_generation(comparer: _Comparer) -> Iterator[str]:
    """Settings of answering and drawing: a choice of the user's, so they bar no difference."""
    base = comparer.records[comparer.baseline].benchmarks
    for label, record in zip(comparer.labels, comparer.records, strict=True):
        for name in (name for name in record.benchmarks if name in base):
            ours = record.benchmarks[name]
            for key, one, two in _differences(ours.generation, base[name].generation):
                yield (
                    f"{ours.title}: {key} is {one} for {label} and {two} for "
                    f"{comparer.labels[comparer.baseline]}."
                )


def _count(comparer: _Comparer) -> None:
    """What was left out of the averages, and what the evaluation warned of."""
    for row, record in enumerate(comparer.records):
        for benchmark in record.benchmarks.values():
            for kind in ("skipped", "unscored"):
                for reason, number in (benchmark.counts.get(kind) or {}).items():
                    if number:
                        comparer.note(benchmark.title, row, f"{kind}: {number} {reason}.")
            for warning in filter(None, [unparsed_warning(benchmark.counts), *benchmark.warnings]):
                comparer.note(benchmark.title, row, warning)


def _trained(records: Sequence[Record], labels: Sequence[str]) -> Iterator[str]:
    """What training cost."""
    costs = [
        f"{label} {record.training['steps']} understanding steps in "
        f"{record.training['seconds']:.0f} s"
        for label, record in zip(labels, records, strict=True)
        if {"steps", "seconds"} <= record.training.keys()
    ]
    if costs:
        yield f"Training: {', '.join(costs)}."
