"""``results.json`` of the demo: records of several arms, each with its difference to plain SFT.

The rows are those of the paper's tables, in its order, and the two that only the synthetic world
has. Differences are paired on the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unigame.errors import UserError
from unigame.reports.combined import Part, combined_difference
from unigame.reports.metrics import difference
from unigame.reports.records import Record, unparsed_warning
from unigame.reports.results import ARM_LABELS, BASELINE

SUMMARY = "summary"


@dataclass(frozen=True)
class Row:
    """One figure of every arm: a benchmark's metric (None: its headline), or a combined score."""

    name: str
    label: str
    benchmark: str
    metric: str | None = None


ROWS = (
    Row("vqav2", "VQAv2", "vqav2"),
    Row("mmmu", "MMMU", "mmmu"),
    Row("mmbench", "MMBench", "mmbench"),
    Row("pope", "POPE (F1)", "pope"),
    Row("understanding", "understanding, mean", SUMMARY, "understanding"),
    Row("geneval", "GenEval", "geneval"),
    Row("unifiedbench", "UnifiedBench", "unifiedbench"),
    Row("wise", "WISE", "wise"),
    Row("consistency", "consistency", SUMMARY, "consistency"),
    Row("naturalbench", "NaturalBench (G-Acc)", "naturalbench"),
    Row("advqa", "AdVQA", "advqa"),
    Row("ood", "out of distribution", "ood"),
    Row("ood_no_count", "OOD without counting", "ood", "accuracy_no_count"),
    Row("redrawn", "redrawn, without attack", "attack", "redrawn"),
    Row("attack", "under a fresh attack", "attack"),
)


@dataclass(frozen=True)
class ArmRun:
    """A finished arm: its record, and what its training cost."""

    record: Record
    steps: int
    seconds: float


def arm_results(arms: Mapping[str, ArmRun]) -> dict[str, Any]:
    """``arms``, ``differences``, ``metric_info`` and ``warnings`` of the demo's results.json.

    Raises:
        UserError: a record is damaged.
    """
    found: dict[str, Any] = {"arms": {}, "differences": {}, "metric_info": {}, "warnings": []}
    base = arms[BASELINE].record if BASELINE in arms else None
    for arm, run in arms.items():
        figures, gaps = {}, {}
        for row in ROWS:
            figure = _figure(run.record, row)
            if figure is None:
                continue
            figures[row.name] = figure
            found["metric_info"].setdefault(row.name, _info(run.record, row))
            if base is not None and arm != BASELINE and _figure(base, row) is not None:
                gap = _gap(run.record, base, row)
                if gap is not None:
                    gaps[row.name] = gap
        found["arms"][arm] = {
            "metrics": figures,
            "steps": run.steps,
            "seconds": round(run.seconds, 1),
        }
        if base is not None and arm != BASELINE:
            found["differences"][arm] = gaps
        for benchmark in run.record.benchmarks.values():
            if warning := unparsed_warning(benchmark.counts):
                found["warnings"].append(
                    f"{benchmark.title}, {ARM_LABELS.get(arm, arm)}: {warning}"
                )
    return found


def _figure(record: Record, row: Row) -> dict[str, Any] | None:
    """Value, interval and n, on the metric's scale; None where the record has no such figure."""
    if row.benchmark == SUMMARY:
        score = record.summary.get(str(row.metric)) or {}
        if score.get("value") is None:
            return None
        return {key: score[key] for key in ("value", "low", "high", "n")}
    benchmark = record.benchmarks.get(row.benchmark)
    name = row.metric or (benchmark.headline if benchmark else "")
    if benchmark is None or name not in benchmark.figures:
        return None
    figure = benchmark.figures[name]
    return {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n}


def _gap(ours: Record, base: Record, row: Row) -> dict[str, Any] | None:
    """The paired difference; None where the two have no question in common."""
    try:
        if row.benchmark == SUMMARY:
            return dict(combined_difference(_parts(ours, row), _parts(base, row)))
        mine, theirs = (
            record.benchmarks[row.benchmark].metrics[
                row.metric or record.benchmarks[row.benchmark].headline
            ]
            for record in (ours, base)
        )
        return dict(difference(mine, theirs))
    except UserError:  # such as attacks of which no picture kept its content in both arms
        return None


def _parts(record: Record, row: Row) -> list[Part]:
    """What a combined score is made of."""
    return [
        Part(
            record.benchmarks[part["benchmark"]].metrics[part["metric"]],
            float(part["weight"]),
        )
        for part in record.summary[str(row.metric)]["parts"]
    ]


def _info(record: Record, row: Row) -> dict[str, Any]:
    """How the figure is shown: percentages with one decimal, scores on 0-1 with three."""
    scale = 100.0
    if row.benchmark != SUMMARY:
        benchmark = record.benchmarks[row.benchmark]
        scale = benchmark.metrics[row.metric or benchmark.headline].scale
    shown = {"unit": "%", "digits": 1} if scale == 100 else {"unit": "", "digits": 3}
    return {"label": row.label, "higher_is_better": True, **shown}
