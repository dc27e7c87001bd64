"""Cells of every table: a figure, its interval, and its difference to the baseline with a mark.

A difference is marked only where its interval excludes zero, in the direction that is good for the
metric. Nothing else decides on marks, so no table can be kinder than another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from unigame.reports.results import Estimate, MetricInfo

_MIN_WIDTH = 100  # columns to assume when the output is piped
_COLOURS = {1: "green", 0: "", -1: "red"}


@dataclass(frozen=True)
class Glyphs:
    """The signs of a table: by mark (+1, 0, -1), and between a figure and its spread."""

    marks: Mapping[int, str]
    spread: str


UNICODE = Glyphs({1: "▲", 0: "", -1: "▼"}, "±")
ASCII = Glyphs({1: "(+)", 0: "", -1: "(-)"}, "+/-")


def fit(console: Console | None) -> tuple[Console, Glyphs]:
    """A console wide enough for a table also when piped, and the signs that it can show."""
    console = console or Console(markup=False, emoji=False)  # labels are texts
    if not console.is_terminal and console.width < _MIN_WIDTH:
        console.width = _MIN_WIDTH
    return console, ASCII if console.options.ascii_only else UNICODE


def mark(difference: Estimate | None, info: MetricInfo) -> int:
    """+1 where the difference is a measured gain, -1 where a measured loss, 0 otherwise."""
    if difference is None or info.higher_is_better is None or not difference.excludes_zero:
        return 0
    return 1 if (difference.value > 0) == info.higher_is_better else -1


def terminal_cell(
    figure: Estimate | None, gap: Estimate | None, info: MetricInfo, glyphs: Glyphs
) -> Text:
    """Two lines: the figure with its spread, the difference with its mark."""
    if figure is None:
        return Text("-", style="dim")
    spread = max(figure.high - figure.value, figure.value - figure.low)
    cell = Text(f"{info.show(figure.value)} {glyphs.spread}{info.show(spread)}")
    if gap is not None:
        sign = mark(gap, info)
        text = f"\n{info.show(gap.value, signed=True)} {glyphs.marks[sign]}".rstrip(" ")
        cell.append(text, style=_COLOURS[sign] or "dim")
    return cell


def markdown_cell(figure: Estimate | None, gap: Estimate | None, info: MetricInfo) -> str:
    """The same with intervals written out."""
    if figure is None:
        return "-"
    cell = f"{info.show(figure.value)} [{info.show(figure.low)}, {info.show(figure.high)}]"
    if gap is not None:
        sign = mark(gap, info)
        glyph = f" {UNICODE.marks[sign]}" if sign else ""
        low, high = info.show(gap.low, signed=True), info.show(gap.high, signed=True)
        cell += f"<br>{info.show(gap.value, signed=True)} [{low}, {high}]{glyph}"
    return cell


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a GitHub table; the first cell of each row is its name, the others are figures."""
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
