"""A comparison as terminal tables, Markdown, CSV and LaTeX."""

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
from unigame.reports.compare import Cell, Comparison, Grid
from unigame.reports.records import Record


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the paper's tables and the notes (plain text when piped)."""
    console, glyphs = fit(console)
    for grid in comparison.tables:
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            header_style="bold",
            title=Text(grid.title, style="bold"),
            title_justify="left",
        )
        table.add_column("", min_width=14, overflow="fold")
        for column in grid.columns:
            table.add_column(column, justify="right")
        for label, cells in zip(grid.rows, grid.cells, strict=True):
            shown = [terminal_cell(c.figure, c.gap, c.info, glyphs) for c in cells]
            table.add_row(Text(label), *shown)
        console.print(table)
    for note in _notes(comparison, glyphs):
        console.print(Text(note, style="dim"))


def to_markdown(comparison: Comparison) -> str:
    """Tables, notes, and every metric of each benchmark, with intervals written out."""
    lines = ["# Comparison", ""]
    for grid in comparison.tables:
        lines += _markdown_grid(grid, "##")
    lines += ["## Notes", "", *(f"- {note}" for note in _notes(comparison)), ""]
    lines += ["## Details", ""]
    for grid in comparison.details.values():
        lines += _markdown_grid(grid, "###")
    return "\n".join(lines).rstrip() + "\n"


def _markdown_grid(grid: Grid, level: str) -> list[str]:
    rows = [
        [_escaped(label), *(markdown_cell(c.figure, c.gap, c.info) for c in cells)]
        for label, cells in zip(grid.rows, grid.cells, strict=True)
    ]
    columns = [_escaped(column) for column in grid.columns]
    return [f"{level} {grid.title}", "", *markdown_table(columns, rows), ""]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


_CSV_COLUMNS = (
    *("model", "benchmark", "metric", "label", "headline", "statistic", "scale"),
    *("value", "low", "high", "n"),
    *("baseline", "difference", "difference_low", "difference_high", "difference_n"),
    "no_difference",
)
_SCORES = ("understanding", "consistency")


def to_csv(comparison: Comparison, records: Sequence[Record]) -> str:
    """One line per model and metric of every benchmark, unrounded, on the metric's own scale."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for name, grid in comparison.details.items():
        for cells in grid.cells:
            for label, record, cell in zip(comparison.labels, records, cells, strict=True):
                if cell.figure is not None:
                    found = record.benchmarks[name]
                    metric = found.metrics[cell.info.name]
                    about = {
                        "benchmark": name,
                        "headline": int(metric.name == found.headline),
                        "statistic": metric.statistic,
                        "scale": metric.scale,
                    }
                    writer.writerow({"model": label} | about | _csv_figures(comparison, cell))
    for grid in comparison.tables:
        for label, cells in zip(grid.rows, grid.cells, strict=True):
            for cell in cells:
                if cell.info.name in _SCORES and cell.figure is not None:
                    about = {"benchmark": "summary", "headline": 1, "scale": 100.0}
                    writer.writerow({"model": label} | about | _csv_figures(comparison, cell))
    return out.getvalue()


def _csv_figures(comparison: Comparison, cell: Cell) -> dict[str, object]:
    figure, gap = cell.figure, cell.gap
    assert figure is not None
    row: dict[str, object] = {
        "metric": cell.info.name,
        "label": cell.info.label,
        "value": figure.value,
        "low": figure.low,
        "high": figure.high,
        "n": "" if figure.n is None else figure.n,
        "baseline": comparison.labels[comparison.baseline],
        "no_difference": cell.reason,
    }
    if gap is not None:
        row |= {
            "difference": gap.value,
            "difference_low": gap.low,
            "difference_high": gap.high,
            "difference_n": gap.n,
        }
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
    show = cell.info.show
    interval = f"{show(cell.figure.low)}, {show(cell.figure.high)}"
    return rf"${show(cell.figure.value)}$ {{\scriptsize $[{interval}]$}}"


def _latex_gap(cell: Cell) -> str:
    if cell.gap is None:
        return ""
    low, high = (
        cell.info.show(cell.gap.low, signed=True),
        cell.info.show(cell.gap.high, signed=True),
    )
    arrow = {1: r"\uparrow", 0: "", -1: r"\downarrow"}[mark(cell.gap, cell.info)]
    gap = cell.info.show(cell.gap.value, signed=True)
    return rf"{{\scriptsize ${gap}\,[{low}, {high}]{arrow}$}}"


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


def _notes(comparison: Comparison, glyphs: Glyphs = UNICODE) -> list[str]:
    """The legend, then what the comparison noted."""
    baseline = comparison.labels[comparison.baseline]
    return [
        f"{glyphs.marks[1]} better / {glyphs.marks[-1]} worse than {baseline} on the same items; "
        "unmarked: the 95 % interval of the paired difference includes 0.",
        "Intervals cover the choice of items, not training or drawing seeds; of many figures about "
        "one in twenty is marked by chance.",
        *comparison.notes,
    ]
