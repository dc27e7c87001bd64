"""A record as text: what ``unigame evaluate`` prints at the end, and a line on each benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unigame.reports.metrics import ALONE
from unigame.reports.records import unparsed_warning
from unigame.system.console import make_console

_MOST_ROWS = 6
_TEXT = ("benchmark", "metric")


def headline(entry: Mapping[str, Any]) -> str:
    """The first figure of a benchmark's entry, and how many replies were not understood."""
    metric, counts = next(iter(entry["metrics"].values()), None), entry.get("counts", {})
    if metric is None:  # answers for a server to judge, or a judge that never answered
        return "nothing scored here"
    line = f"{metric['label']} {_figure(metric)}"
    return f"{line}, {_unparsed(counts)} unparsed" if unparsed_warning(counts) else line


def print_record(
    record: Mapping[str, Any], names: Sequence[str], console: Console | None = None
) -> None:
    """Figures with intervals, then what became of the items, then what to know of them."""
    console = console or make_console()
    entries = {name: record["benchmarks"][name] for name in names if name in record["benchmarks"]}
    console.print(_figures(entries, record["summary"], console))
    console.print(_counts(entries, console))
    for entry in entries.values():
        for line in _left_out(entry):
            console.print(Text(f"{entry['title']}: {line}", style="dim"))
        for line in entry["warnings"]:
            console.print(Text(f"{entry['title']}: {line}", style="yellow"))


def _table(console: Console, *headings: str) -> Table:
    plain = not (console.encoding or "").lower().startswith("utf")
    table = Table(box=box.ASCII2 if plain else box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in _TEXT else "right")
    return table


def _figures(entries: Mapping[str, Any], summary: Mapping[str, Any], console: Console) -> Table:
    table = _table(console, "benchmark", "metric", "value", "95 % interval")
    for entry in entries.values():
        metrics = list(entry["metrics"].values())
        for row, metric in enumerate(metrics[:_MOST_ROWS]):
            title = entry["title"] if row == 0 else ""
            table.add_row(title, metric["label"], _figure(metric), _interval(metric))
        if len(metrics) > _MOST_ROWS:
            more = f"{len(metrics) - _MOST_ROWS} more in the record"
            table.add_row("", Text(more, style="dim"))
    for name in ("understanding", "consistency"):
        score = summary.get(name)
        if score and score.get("value") is not None:
            figures = {**score, "scale": 100}
            table.add_row(name.capitalize(), "combined", _figure(figures), _interval(figures))
    return table


def _counts(entries: Mapping[str, Any], console: Console) -> Table:
    table = _table(console, "benchmark", "items", "scored", "unparsed", "skipped", "unscored")
    for entry in entries.values():
        counts = entry["counts"]
        sums = [sum(counts[kind].values()) for kind in ("skipped", "unscored")]
        row = [str(number) for number in (counts["items"], counts["scored"], *sums)]
        row.insert(2, _unparsed(counts))
        table.add_row(entry["title"], *row)
    return table


def _unparsed(counts: Mapping[str, Any]) -> str:
    """The number, with its share and a mark where it spoils the figures; "-": nothing is parsed."""
    if not unparsed_warning(counts):
        return str(counts.get("unparsed", "-"))
    return f"{counts['unparsed']} ({counts['unparsed'] / max(counts['scored'], 1):.0%}) !"


def _digits(metric: Mapping[str, Any]) -> int:
    return 2 if metric["scale"] == 100 else 3


def _figure(metric: Mapping[str, Any]) -> str:
    return f"{metric['value']:.{_digits(metric)}f}"


def _interval(metric: Mapping[str, Any]) -> str:
    if metric.get("clusters") == 1:  # every resample is the same
        return f"- ({ALONE})"
    digits = _digits(metric)
    return f"{metric['low']:.{digits}f} to {metric['high']:.{digits}f}"


def _left_out(entry: Mapping[str, Any]) -> list[str]:
    """Why items and pictures were left out."""
    first = entry.get("examples") or {}
    lines = [
        f"{kind}: "
        + ", ".join(
            f"{count} {reason}" + (f" (first: {first[reason]})" if reason in first else "")
            for reason, count in reasons.items()
        )
        for kind, reasons in (
            ("skipped", entry["counts"]["skipped"]),
            ("unscored", entry["counts"]["unscored"]),
        )
        if reasons
    ]
    if dropped := entry["details"].get("images_dropped"):
        lines.append(f"{dropped} further pictures of questions were not shown (see --max-images)")
    return lines
