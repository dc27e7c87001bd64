"""The before/after table: terminal, Markdown and CSV, with a verdict that says whatever came out.

A difference is marked only where its interval excludes zero, in the direction that is good for the
metric. The verdict is written from the marks alone, so it cannot be kinder than the table.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unigame.reports.results import BASELINE, Arm, Estimate, MetricInfo, Results

PLAYER = "unigame"
# The controls that get no attack: what they gain as well cannot be the attack's doing.
CONTROLS = ("sft_equal_samples", "round_trip")
_MIN_WIDTH = 100  # columns to assume when the output is piped


@dataclass(frozen=True)
class _Glyphs:
    """The signs of the table: by mark (+1, 0, -1), and between a figure and its spread."""

    marks: Mapping[int, str]
    spread: str


_UNICODE = _Glyphs({1: "▲", 0: "", -1: "▼"}, "±")
_ASCII = _Glyphs({1: "(+)", 0: "", -1: "(-)"}, "+/-")


def mark(difference: Estimate | None, info: MetricInfo) -> int:
    """+1 where the difference is a measured gain, -1 where a measured loss, 0 otherwise."""
    if difference is None or not difference.excludes_zero:
        return 0
    return 1 if (difference.value > 0) == info.higher_is_better else -1


def print_table(results: Results, console: Console | None = None) -> None:
    """Print the table, the verdict and the notes to the terminal (plain text when piped)."""
    console = console or Console()
    if not console.is_terminal and console.width < _MIN_WIDTH:
        console.width = _MIN_WIDTH
    glyphs = _ASCII if console.options.ascii_only else _UNICODE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=False, min_width=14)
    for arm in results.arms.values():
        table.add_column(arm.label, justify="right", style="bold" if arm.name == PLAYER else "")
    for info in results.metrics:
        cells = [_terminal_cell(results, arm, info, glyphs) for arm in results.arms.values()]
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
    lines = [
        "| | " + " | ".join(arm.label for arm in arms) + " |",
        "|---|" + "---:|" * len(arms),
    ]
    for info in results.metrics:
        cells = [_markdown_cell(results, arm, info) for arm in arms]
        lines.append(f"| {_metric_label(info)} | " + " | ".join(cells) + " |")
    for label, texts in _cost_rows(results):
        lines.append(f"| {label} | " + " | ".join(texts) + " |")
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


def notes(results: Results, glyphs: _Glyphs = _UNICODE) -> list[str]:
    """What a reader must know before believing the table; every line follows from the figures."""
    lines = []
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


_COLOURS = {1: "green", 0: "", -1: "red"}


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
    direction = "" if info.higher_is_better else " (lower is better)"
    return f"{info.label}{f', {unit}' if unit else ''}{direction}"


def _terminal_cell(results: Results, arm: Arm, info: MetricInfo, glyphs: _Glyphs) -> Text:
    figure = arm.metrics.get(info.name)
    if figure is None:
        return Text("-", style="dim")
    spread = max(figure.high - figure.value, figure.value - figure.low)
    cell = Text(f"{info.show(figure.value)} {glyphs.spread}{info.show(spread)}")
    gap = results.difference(arm.name, info.name)
    if gap is not None and arm.name != BASELINE:
        sign = mark(gap, info)
        text = f"\n{info.show(gap.value, signed=True)} {glyphs.marks[sign]}".rstrip(" ")
        cell.append(text, style=_COLOURS[sign] or "dim")
    return cell


def _markdown_cell(results: Results, arm: Arm, info: MetricInfo) -> str:
    figure = arm.metrics.get(info.name)
    if figure is None:
        return "-"
    cell = f"{info.show(figure.value)} [{info.show(figure.low)}, {info.show(figure.high)}]"
    gap = results.difference(arm.name, info.name)
    if gap is not None and arm.name != BASELINE:
        sign = mark(gap, info)
        glyph = f" {_UNICODE.marks[sign]}" if sign else ""
        low, high = info.show(gap.low, signed=True), info.show(gap.high, signed=True)
        cell += f"<br>{info.show(gap.value, signed=True)} [{low}, {high}]{glyph}"
    return cell


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
