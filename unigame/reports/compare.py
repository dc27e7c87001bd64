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
from unigame.reports.combined import Part, combined_difference
from unigame.reports.metrics import Difference, Metric, difference, value_of
from unigame.reports.records import BenchmarkRecord, Record, unparsed_warning
from unigame.reports.results import Estimate, MetricInfo, parse_estimate

MIN_CLUSTERS = 10
"""With fewer pictures or groups an interval means nothing, so no difference is shown."""


@dataclass(frozen=True)
class Column:
    """A column of the paper's tables: a metric of a benchmark (None: its headline), or a score."""

    title: str
    benchmark: str
    metric: str | None = None
    digits: int | None = None


_SUMMARY = "summary"
TABLES: dict[str, tuple[Column, ...]] = {
    "Understanding": (
        Column("VQAv2", "vqav2"),
        Column("MMMU", "mmmu"),
        Column("MMBench", "mmbench"),
        Column("POPE", "pope"),
        Column("overall", _SUMMARY, "understanding"),
    ),
    "Generation and consistency": (
        Column("GenEval", "geneval"),
        Column("UnifiedBench", "unifiedbench", digits=2),
        Column("WISE", "wise"),
        Column("consistency", _SUMMARY, "consistency", digits=2),
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
}


@dataclass(frozen=True)
class Cell:
    """A figure and its difference to the baseline, or why there is none."""

    info: MetricInfo
    figure: Estimate | None = None
    gap: Estimate | None = None
    reason: str = ""


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
    """

    labels: tuple[str, ...]
    baseline: int
    tables: tuple[Grid, ...]
    details: Mapping[str, Grid]
    notes: tuple[str, ...]


@dataclass
class _Comparer:
    """Records side by side. Notes are a dict because it keeps order and holds each once."""

    records: Sequence[Record]
    labels: tuple[str, ...]
    baseline: int
    notes: dict[str, None] = field(default_factory=dict)
    done: dict[tuple[int, str, str], Cell] = field(default_factory=dict)

    def benchmark_cell(self, row: int, name: str, metric: str | None = None) -> Cell:
        """A benchmark's figure in record ``row``, with its difference to the baseline's."""
        ours = self.records[row].benchmarks.get(name)
        key = metric or (ours.headline if ours else "")
        if ours is None or key not in ours.metrics:
            return Cell(MetricInfo(key, key))
        if (row, name, key) not in self.done:
            self.done[row, name, key] = self._benchmark_cell(row, ours, key)
        return self.done[row, name, key]

    def _benchmark_cell(self, row: int, ours: BenchmarkRecord, key: str) -> Cell:
        base = self.records[self.baseline].benchmarks.get(ours.name)
        cell = Cell(metric_info(ours.metrics[key]), ours.figures[key])
        if row == self.baseline or base is None:
            return cell
        reasons = what_differs(ours, base)
        if not reasons and key not in base.metrics:
            reasons.append(f"{self.labels[self.baseline]} has no {cell.info.label}")
        what = f"{ours.title}, {self.labels[row]}"
        return self._paired(
            cell, what, reasons, lambda: difference(ours.metrics[key], base.metrics[key])
        )

    def summary_cell(self, row: int, name: str) -> Cell:
        """The consistency score or the understanding mean, paired part by part."""
        cell = Cell(MetricInfo(name, name, digits=1))
        ours = _summary(self.records[row], name)
        base = _summary(self.records[self.baseline], name)
        if not ours or ours.get("value") is None:
            if ours and ours.get("reason"):
                self.notes[f"No {name} score, {self.labels[row]}: {ours['reason']}."] = None
            return cell
        cell = replace(cell, figure=parse_estimate(ours, f"{self.records[row].path}: {name}"))
        _check_summary(self.records[row], name, ours)
        if row == self.baseline or not base or base.get("value") is None:
            return cell
        mine = _parts(self.records[row], name, ours)
        theirs = _parts(self.records[self.baseline], name, base)
        reasons = [
            f"its part {record.title} differs"
            for key, (record, _) in mine.items()
            if key not in theirs or what_differs(record, theirs[key][0])
        ]
        ours_parts, base_parts = ([part for _, part in side.values()] for side in (mine, theirs))
        return self._paired(
            cell,
            f"{name}, {self.labels[row]}",
            reasons,
            lambda: combined_difference(ours_parts, base_parts),
        )

    def _paired(
        self, cell: Cell, what: str, reasons: list[str], compute: Callable[[], Difference]
    ) -> Cell:
        """The cell with its difference, or with the reason why it has none."""
        reason = "; ".join(reasons)
        if not reason:
            try:
                gap = compute()
            except UserError as error:
                reason = str(error)
            else:
                if gap["clusters"] < MIN_CLUSTERS:
                    reason = (
                        f"only {gap['clusters']} pictures or groups in common, "
                        f"at least {MIN_CLUSTERS} needed"
                    )
        if reason:
            self.notes[f"No difference for {what}: {reason}."] = None
            return replace(cell, reason=reason)
        assert cell.figure is not None
        if cell.figure.n is not None and gap["n"] < cell.figure.n:
            partial = f"the difference is over {gap['n']} of {cell.figure.n}, those in both records"
            self.notes[f"{what}, {cell.info.label}: {partial}."] = None
        return replace(cell, gap=Estimate(gap["value"], gap["low"], gap["high"], gap["n"]))


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
    details = {
        name: _details(comparer, name)
        for name in dict.fromkeys(name for record in records for name in record.benchmarks)
    }
    wanted = {**TABLES, "Further benchmarks": _further(details)}
    tables = tuple(
        grid for title, columns in wanted.items() if (grid := _table(comparer, title, columns))
    )
    notes = [
        *comparer.notes,
        *_same_weights(records, labels),
        *_other_generation(comparer),
        *_counted(records, labels),
    ]
    return Comparison(tuple(labels), baseline, tables, details, tuple(notes))


def metric_info(metric: Metric) -> MetricInfo:
    """How to show a metric: percentages with one decimal, scores on a scale of 1 with three."""
    return MetricInfo(
        metric.name,
        metric.label,
        higher_is_better=None if metric.name.startswith("yes_ratio") else True,
        digits=1 if metric.scale == 100 else 3,
    )


def what_differs(ours: BenchmarkRecord, base: BenchmarkRecord) -> list[str]:
    """Why the figures of two records of a benchmark cannot be subtracted; empty if they can."""
    reasons = []
    if _data(ours) != _data(base):
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


def _data(record: BenchmarkRecord) -> Any:
    """What tells two sets of items apart: their content, or where it is not known, their origin."""
    return record.dataset.get("fingerprint") or dict(record.dataset)


def _differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys((*ours, *theirs)):
        one, two = ours.get(key), theirs.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            yield from ((f"{key}.{inner}", a, b) for inner, a, b in _differences(one, two))
        elif one != two:
            yield key, one, two


def _summary(record: Record, name: str) -> Mapping[str, Any] | None:
    found = record.summary.get(name)
    return found if isinstance(found, Mapping) else None


def _parts(
    record: Record, name: str, summary: Mapping[str, Any]
) -> dict[str, tuple[BenchmarkRecord, Part]]:
    """What a combined score is made of, by benchmark."""
    try:
        return {
            part["benchmark"]: (
                record.benchmarks[part["benchmark"]],
                Part(
                    record.benchmarks[part["benchmark"]].metrics[part["metric"]],
                    float(part["weight"]),
                ),
            )
            for part in summary["parts"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{record.path}: the parts of the {name} score are damaged ({error!r}); "
            "run the evaluation again"
        ) from None


def _check_summary(record: Record, name: str, summary: Mapping[str, Any]) -> None:
    """A combined score is the sum of its parts.

    Raises:
        UserError: it is not.
    """
    parts = [part for _, part in _parts(record, name, summary).values()]
    value = sum(part.factor * value_of(part.metric) for part in parts)
    if not math.isclose(value, summary["value"], rel_tol=1e-6, abs_tol=1e-4):
        raise UserError(
            f"{record.path}: the {name} score is {summary['value']:g}, but its parts give "
            f"{value:g}: the record contradicts itself; run the evaluation again"
        )


def _check_agreement(records: Sequence[Record]) -> None:
    """Records of the same items say how many there are alike.

    Raises:
        UserError: they do not.
    """
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


def _further(details: Mapping[str, Grid]) -> tuple[Column, ...]:
    """The headlines of benchmarks that the paper's tables do not have."""
    known = {column.benchmark for columns in TABLES.values() for column in columns}
    return tuple(Column(grid.title, name) for name, grid in details.items() if name not in known)


def _table(comparer: _Comparer, title: str, columns: Sequence[Column]) -> Grid | None:
    """One of the paper's tables, without the columns that no record has."""
    filled: list[tuple[str, list[Cell]]] = []
    for column in columns:
        cells = [_cell(comparer, row, column) for row in range(len(comparer.records))]
        if any(cell.figure for cell in cells):
            filled.append((column.title, cells))
    if not filled:
        return None
    titles, cells_by_column = zip(*filled, strict=True)
    return Grid(title, titles, comparer.labels, tuple(zip(*cells_by_column, strict=True)))


def _cell(comparer: _Comparer, row: int, column: Column) -> Cell:
    if column.benchmark == _SUMMARY:
        cell = comparer.summary_cell(row, str(column.metric))
    else:
        cell = comparer.benchmark_cell(row, column.benchmark, column.metric)
    if column.digits is None:
        return cell
    return replace(cell, info=replace(cell.info, digits=column.digits))


def _details(comparer: _Comparer, name: str) -> Grid:
    """Every metric of one benchmark."""
    found = [r.benchmarks[name] for r in comparer.records if name in r.benchmarks]
    labels = {key: metric.label for record in found for key, metric in record.metrics.items()}
    rows = range(len(comparer.records))
    cells = tuple(tuple(comparer.benchmark_cell(row, name, key) for row in rows) for key in labels)
    return Grid(found[0].title, comparer.labels, tuple(labels.values()), cells)


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


def _counted(records: Sequence[Record], labels: Sequence[str]) -> Iterator[str]:
    """What was left out of the averages, and what the evaluation warned of."""
    for label, record in zip(labels, records, strict=True):
        for benchmark in record.benchmarks.values():
            for kind in ("skipped", "unscored"):
                counted = benchmark.counts.get(kind) or {}
                if counted:
                    reasons = ", ".join(f"{n} {reason}" for reason, n in counted.items())
                    yield f"{benchmark.title}, {label}: {kind}: {reasons}."
            unparsed = unparsed_warning(benchmark.counts)
            for warning in dict.fromkeys([*filter(None, [unparsed]), *benchmark.warnings]):
                yield f"{benchmark.title}, {label}: {warning}"
