"""The before/after table: terminal, Markdown and CSV, with a verdict that says whatever came out.

The verdict is written from the marks alone, so it cannot be kinder than the table.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unigame.reports.cells import (
    UNICODE,
    Glyphs,
    fit,
    mark,
    markdown_cell,
    markdown_table,
    terminal_cell,
)
from unigame.reports.results import BASELINE, Arm, Estimate, MetricInfo, Results

PLAYER = "unigame"
# The controls that get no attack: what they gain as well cannot be the attack's doing.
CONTROLS = ("sft_equal_samples", "round_trip")


def print_table(results: Results, console: Console | None = None) -> None:
    """Print the table, the verdict and the notes to the terminal (plain text when piped)."""
    console, glyphs = fit(console)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=False, min_width=14)
    for arm in results.arms.values():
        table.add_column(arm.label, justify="right", style="bold" if arm.name == PLAYER else "")
    for info in results.metrics:
        cells = [
            terminal_cell(*_figures(results, arm, info), info, glyphs)
            for arm in results.arms.values()
        ]
        table.add_row(_metric_label(info), *cells)
    for label, texts in _cost_rows(results):
        table.add_row(Text(label, style="dim"), *(Text(text, style="dim") for text in texts))
    console.print(table)
    console.print(Text(verdict(results), style="bold"))
    for note in notes(results, glyphs):
        console.print(Text(note, style="dim"))


def to_markdown(results: Results) -> str:
    """The table, verdict and notes as GitHub-flavoured Markdown, intervals written out."""
    arms = list(results.arms.values())
    rows = [
        [_metric_label(m), *(markdown_cell(*_figures(results, arm, m), m) for arm in arms)]
        for m in results.metrics
    ]
    rows += [[label, *texts] for label, texts in _cost_rows(results)]
    lines = markdown_table([arm.label for arm in arms], rows)
    lines += ["", f"**{verdict(results)}**", ""]
    lines += [f"- {note}" for note in notes(results)]
    return "\n".join(lines) + "\n"


def to_csv(results: Results) -> str:
    """One line per arm and metric, unrounded, in the metric's own unit."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["arm", "metric", "value", "low", "high", "n"]
        + [f"minus_{BASELINE}", f"minus_{BASELINE}_low", f"minus_{BASELINE}_high"]
    )
    for arm in results.arms.values():
        for metric, figure in arm.metrics.items():
            gap = results.difference(arm.name, metric)
            gaps = [gap.value, gap.low, gap.high] if gap else ["", "", ""]
            n = "" if figure.n is None else figure.n
            writer.writerow([arm.name, metric, figure.value, figure.low, figure.high, n, *gaps])
    return out.getvalue()


def verdict(results: Results) -> str:
    """One sentence on UniGame against the baseline, written from the intervals alone."""
    if PLAYER not in results.arms or BASELINE not in results.arms:
        return "No verdict: the file has no UniGame arm and SFT arm to compare."
    judged = [m for m in results.metrics if results.difference(PLAYER, m.name) is not None]
    if not judged:
        return (
            "No verdict: the file has no intervals of the differences to SFT, so none is claimed."
        )
    won, even, lost = (
        [info for info in judged if _player_mark(results, info) == sign] for sign in (1, 0, -1)
    )
    parts = [
        f"UniGame beat SFT on: {_join(won)}" if won else "UniGame did not beat SFT on any figure"
    ]
    if even:
        parts.append(f"no measurable difference on: {_join(even)}")
    if lost:
        parts.append(f"worse than SFT on: {_join(lost)}")
    return "; ".join(parts) + "."


def notes(results: Results, glyphs: Glyphs = UNICODE) -> list[str]:
    """What a reader must know before believing the table; every line follows from the figures."""
    lines = [f"{warning}." for warning in results.warnings]
    if results.differences:
        lines.append(
            f"{glyphs.marks[1]} better / {glyphs.marks[-1]} worse than SFT on the same questions; "
            "unmarked: the 95 % interval of the difference includes 0."
        )
    shared = _gained_without_attack(results)
    if shared:
        lines.append(
            f"A control without any attack beat SFT as well on: {_join(shared)}. These gains are "
            "not shown to come from the attack."
        )
    seed = "" if results.seed is None else f" (seed {results.seed})"
    lines.append(
        f"One training run per arm{seed}: intervals cover the choice of questions, not the "
        "training seed, and of many figures about one in twenty is marked by chance."
    )
    return lines


def _player_mark(results: Results, info: MetricInfo) -> int:
    return mark(results.difference(PLAYER, info.name), info)


def _gained_without_attack(results: Results) -> list[MetricInfo]:
    return [
        info
        for info in results.metrics
        if _player_mark(results, info) == 1
        and any(mark(results.difference(arm, info.name), info) == 1 for arm in CONTROLS)
    ]


def _join(metrics: Sequence[MetricInfo]) -> str:
    labels = [info.label for info in metrics]
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _metric_label(info: MetricInfo) -> str:
    unit = "%" if info.unit == "share" else info.unit
    direction = " (lower is better)" if info.higher_is_better is False else ""
    return f"{info.label}{f', {unit}' if unit else ''}{direction}"


def _figures(
    results: Results, arm: Arm, info: MetricInfo
) -> tuple[Estimate | None, Estimate | None]:
    """The arm's figure and its difference to the baseline; the baseline itself has none."""
    gap = None if arm.name == BASELINE else results.difference(arm.name, info.name)
    return arm.metrics.get(info.name), gap


def _cost_rows(results: Results) -> list[tuple[str, list[str]]]:
    """Training steps and seconds of each arm, where the file has them."""
    arms = list(results.arms.values())
    rows = []
    if any(arm.steps is not None for arm in arms):
        steps = ["-" if arm.steps is None else f"{arm.steps}" for arm in arms]
        rows.append(("understanding steps", steps))
    if any(arm.seconds is not None for arm in arms):
        times = ["-" if arm.seconds is None else f"{arm.seconds:.0f}" for arm in arms]
        rows.append(("training seconds", times))
    return rows
