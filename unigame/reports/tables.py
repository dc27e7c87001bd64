"""A comparison as terminal tables, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unigame.reports.compare import SUMMARY, Cell, Comparison, Grid
from unigame.reports.metrics import ALONE, Estimate
from unigame.reports.records import Record

_MIN_WIDTH = 100  # columns to assume when the output is piped
_COLOURS = {1: "green", 0: "dim", -1: "red"}


@dataclass(frozen=True)
class Glyphs:
    """The signs of a table: by mark (+1, 0, -1), and between a figure and its spread."""

    marks: Mapping[int, str]
    spread: str


UNICODE = Glyphs({1: " ▲", 0: "", -1: " ▼"}, "±")
ASCII = Glyphs({1: " (+)", 0: "", -1: " (-)"}, "+/-")


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the paper's tables and the notes (plain text when piped)."""
    console = console or Console(markup=False, emoji=False)  # labels are texts
    if not console.is_terminal and console.width < _MIN_WIDTH:
        console.width = _MIN_WIDTH
    glyphs = ASCII if console.options.ascii_only else UNICODE
    for grid in comparison.tables:
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            header_style="bold",
            title=Text(grid.title, style="bold"),
            title_justify="left",
        )
        table.add_column("", min_width=14, overflow="fold")
        for heading in headings(grid):
            table.add_column(heading, justify="right")
        for label, cells in zip(grid.rows, grid.cells, strict=True):
            table.add_row(Text(label), *(_terminal_cell(cell, glyphs) for cell in cells))
        console.print(table)
    if comparison.verdict:
        console.print(Text(comparison.verdict, style="bold"))
    for note in notes_of(comparison, glyphs):
        console.print(Text(note, style="dim"))


def _terminal_cell(cell: Cell, glyphs: Glyphs) -> Text:
    """Two lines: the figure with its spread, the difference with its mark."""
    if cell.figure is None:
        return Text("-", style="dim")
    value, low, high = _interval(cell.figure)
    text = Text(cell.show(value))
    if not cell.alone:
        text.append(f" {glyphs.spread}{cell.show(max(high - value, value - low))}")
    if cell.gap is not None:
        gap = f"\n{cell.show(cell.gap['value'], signed=True)}{glyphs.marks[cell.mark]}"
        text.append(gap, style=_COLOURS[cell.mark])
    return text


def headings(grid: Grid) -> list[str]:
    """Titles of the columns, with the unit of the figures below."""
    return [
        title + next((cell.unit for cell in cells if cell.figure), "")
        for title, *cells in zip(grid.columns, *grid.cells, strict=True)
    ]


def _interval(figure: Estimate) -> tuple[float, float, float]:
    return figure["value"], figure["low"], figure["high"]


# ---- files ---------------------------------------------------------------------------------------


def write_comparison(comparison: Comparison, records: Sequence[Record], folder: Path) -> None:
    """Write compare.md, compare.csv and compare.tex."""
    texts = {
        "md": to_markdown(comparison),
        "csv": to_csv(comparison, records),
        "tex": to_latex(comparison),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in texts.items():
        (folder / f"compare.{suffix}").write_text(text, encoding="utf-8", errors="backslashreplace")


def to_markdown(comparison: Comparison) -> str:
    """Tables, notes, and every metric of each benchmark, with intervals written out."""
    lines = ["# Comparison", ""]
    for grid in comparison.tables:
        lines += _markdown_grid(grid, "##", headings(grid), grid.rows)
    if comparison.verdict:
        lines += [text for line in comparison.verdict.splitlines() for text in (f"**{line}**", "")]
    lines += ["## Notes", "", *(f"- {note}" for note in notes_of(comparison)), ""]
    lines += ["## Details", ""]
    if comparison.detail_notes:
        lines += [*(f"- {note}" for note in comparison.detail_notes), ""]
    for grid in comparison.details.values():
        rows = [
            label + next((cell.unit for cell in cells if cell.figure), "")
            for label, cells in zip(grid.rows, grid.cells, strict=True)
        ]
        lines += _markdown_grid(grid, "###", grid.columns, rows)
    return "\n".join(lines).rstrip() + "\n"


def _markdown_grid(
    grid: Grid, level: str, columns: Sequence[str], rows: Sequence[str]
) -> list[str]:
    def line(first: str, others: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in (first, *others)) + " |"

    return [
        f"{level} {grid.title}",
        "",
        line("", columns),
        "|---|" + "---:|" * len(columns),
        *(
            line(label, [_markdown_cell(cell) for cell in cells])
            for label, cells in zip(rows, grid.cells, strict=True)
        ),
        "",
    ]


def _markdown_cell(cell: Cell) -> str:
    if cell.figure is None:
        return "-"
    value, low, high = map(cell.show, _interval(cell.figure))
    text = f"{value} [{ALONE}]" if cell.alone else f"{value} [{low}, {high}]"
    if cell.gap is not None:
        value, low, high = (cell.show(number, signed=True) for number in _interval(cell.gap))
        text += f"<br>{value} [{low}, {high}]{UNICODE.marks[cell.mark]}"
    return text


_CSV_COLUMNS = (
    *("model", "benchmark", "metric", "label", "headline", "statistic", "scale"),
    *("value", "low", "high", "n"),
    *("baseline", "difference", "difference_low", "difference_high", "difference_n"),
    "no_difference",
)


def to_csv(comparison: Comparison, records: Sequence[Record]) -> str:
    """One line per model and metric of every benchmark, unrounded, on the metric's own scale."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    baseline = {"baseline": comparison.labels[comparison.baseline]}
    for name, grid in comparison.details.items():
        for cells in grid.cells:
            for label, record, cell in zip(comparison.labels, records, cells, strict=True):
                if cell.figure is not None:
                    found = record.benchmarks[name]
                    about = {
                        "benchmark": name,
                        "headline": int(cell.name == found.headline),
                        "statistic": found.metrics[cell.name].statistic,
                    }
                    writer.writerow({"model": label} | about | baseline | _csv_figures(cell))
    for grid in comparison.tables:
        for label, cells in zip(grid.rows, grid.cells, strict=True):
            for cell in cells:
                if cell.name in ("understanding", "consistency") and cell.figure is not None:
                    about = {"benchmark": SUMMARY, "headline": 1}
                    writer.writerow({"model": label} | about | baseline | _csv_figures(cell))
    return out.getvalue()


def _csv_figures(cell: Cell) -> dict[str, object]:
    assert cell.figure is not None
    row: dict[str, object] = {
        "metric": cell.name,
        "label": cell.label,
        "scale": cell.scale,
        **cell.figure,
        "no_difference": cell.reason,
    }
    if cell.alone:
        row |= {"low": "", "high": ""}
    if cell.gap is not None:
        row |= {"difference": cell.gap["value"], "difference_n": cell.gap["n"]}
        row |= {"difference_low": cell.gap["low"], "difference_high": cell.gap["high"]}
    return row


def to_latex(comparison: Comparison) -> str:
    r"""The paper's tables in LaTeX, for ``\usepackage{booktabs}``."""
    head = "% Written by unigame compare; needs \\usepackage{booktabs}.\n"
    return head + "\n".join(_latex_table(comparison, grid) for grid in comparison.tables)


def _latex_table(comparison: Comparison, grid: Grid) -> str:
    baseline = _latex_text(comparison.labels[comparison.baseline])
    caption = (
        f"{_latex_text(grid.title)}, with 95\\,\\% bootstrap intervals. Second lines: paired "
        f"differences to {baseline}; $\\uparrow$, $\\downarrow$: the interval excludes 0."
    )
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{l{'c' * len(grid.columns)}}}",
        r"\toprule",
        " & ".join(["Model", *map(_latex_text, grid.columns)]) + r" \\",
        r"\midrule",
    ]
    for label, cells in zip(grid.rows, grid.cells, strict=True):
        lines.append(" & ".join([_latex_text(label), *map(_latex_figure, cells)]) + r" \\")
        if any(cell.gap for cell in cells):
            lines.append(" & ".join(["", *map(_latex_gap, cells)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _latex_figure(cell: Cell) -> str:
    if cell.figure is None:
        return "--"
    value, low, high = map(cell.show, _interval(cell.figure))
    if cell.alone:
        return rf"${value}$ {{\scriptsize [{ALONE}]}}"
    return rf"${value}$ {{\scriptsize $[{low}, {high}]$}}"


def _latex_gap(cell: Cell) -> str:
    if cell.gap is None:
        return ""
    value, low, high = (cell.show(number, signed=True) for number in _interval(cell.gap))
    arrow = {1: r"\uparrow", 0: "", -1: r"\downarrow"}[cell.mark]
    return rf"{{\scriptsize ${value}\,[{low}, {high}]{arrow}$}}"


_LATEX_ESCAPES = str.maketrans(
    {
        **{sign: rf"\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)


def _latex_text(text: str) -> str:
    return text.translate(_LATEX_ESCAPES)


def notes_of(comparison: Comparison, glyphs: Glyphs = UNICODE) -> list[str]:
    """The legend, then what the comparison noted."""
    baseline = comparison.labels[comparison.baseline]
    return [
        f"{glyphs.marks[1].strip()} better / {glyphs.marks[-1].strip()} worse than {baseline} on "
        "the same items; unmarked: the 95 % interval of the paired difference includes 0.",
        "Intervals cover the choice of items, not training or drawing seeds; of many figures about "
        "one in twenty is marked by chance.",
        *comparison.notes,
    ]
