"""Plots of a page as inline SVG: colours by class, so that they follow the page's theme.

Every line has a dash pattern of its own beside its colour, and its last value at its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from markupsafe import Markup, escape

from unigame.reports import panels, style
from unigame.reports.panels import Line, Panel, Series

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 44, 12, 26
CLASSES = {
    style.CLEAN: "clean",
    style.DRAWN: "drawn",
    style.ADVERSARIAL: "attacked",
    style.HARD: "hard",
    style.WRONG: "wrong",
    style.RIGHT: "right",
}
DASHED = (style.DRAWN, style.HARD, style.WRONG)
LEAD = Panel(
    "Who is ahead: right answers that C takes beyond redrawing",
    (Line("lead", "C's lead", style.ADVERSARIAL),),
    share=True,
)
LOSSES = Panel(
    "Loss on the answer's own tokens",
    (*panels.CROSS_ENTROPY.lines, Line("hard_answer_ce", "hard (replayed)", style.HARD)),
)
HARDNESS = Panel(
    "Hardness in the buffer",
    (
        Line("hardness_q75", "harder quarter", style.WRONG),
        Line("hardness_q50", "median", style.HARD),
        Line("hardness_q25", "easier quarter", style.CLEAN),
    ),
)
ABOUT: dict[str, str] = {
    LOSSES.title: "Redrawn is what drawing alone does; attacked above redrawn is C's doing.",
    panels.LOST.title: "Of the answers that are right on the clean picture.",
    LEAD.title: "Above 0 C is ahead; at or below 0 it takes no more than redrawing does.",
    panels.SIMILARITY.title: "Below clip_floor a candidate is never kept.",
    panels.BUFFER.title: "Replay waits for buffer_min_size.",
}
DYNAMICS = (
    LOSSES,
    LEAD,
    panels.LOST,
    panels.BUFFER,
    HARDNESS,
    panels.ACCEPTED,
    panels.SIMILARITY,
    panels.CODES,
    panels.SIZE,
)


@dataclass(frozen=True)
class Chart:
    """A plot with the words beside it."""

    title: str
    about: str
    svg: Markup
    lines: tuple[tuple[str, str], ...]
    """(class, label) of each line, for the legend."""


def dynamics(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The plots that have a figure."""
    log = [_with_lead(entry) for entry in log]
    found = [(panel, series) for panel in DYNAMICS if (series := panels.series(panel, log))]
    return [
        Chart(
            panel.title,
            ABOUT.get(panel.title, ""),
            plot(panel, series),
            tuple((CLASSES[line.colour], line.label) for line, _, _ in series),
        )
        for panel, series in found
    ]


def _with_lead(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    lost, alone = entry.get("attack_success_rate"), entry.get("redrawn_success_rate")
    if not isinstance(lost, int | float) or not isinstance(alone, int | float):
        return entry
    return {**entry, "lead": lost - alone}


def plot(panel: Panel, series: Series) -> Markup:
    """The lines of a panel over the steps."""
    values = [value for _, _, line in series for value in line]
    steps = [step for _, line, _ in series for step in line]
    top = max(0.0, *values)
    ticks = _ticks(min(0.0, *values), top if top > 0 or min(values) < 0 else 1.0)
    low, high = ticks[0], ticks[-1]
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        kind = "zero" if tick == 0 else "rule"
        parts.append(
            f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/><text x="{LEFT - 5}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{_number(tick, panel.share)}</text>'
        )
    for step in (first, last):
        parts.append(
            f'<text x="{x(step):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{step:.0f}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">step</text>')
    heights = _apart([y(line[-1]) for _, _, line in series])
    # Dashed lines over the solid ones: where two coincide, both are seen.
    order = sorted(zip(series, heights, strict=True), key=lambda pair: pair[0][0].colour in DASHED)
    for (line, at, found), height in order:
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(at, found, strict=True))
        kind = CLASSES[line.colour]
        if len(at) == 1:
            parts.append(
                f'<circle class="dot {kind}" cx="{x(at[0]):.1f}" cy="{y(found[0]):.1f}" r="3"/>'
            )
        parts.append(f'<polyline class="line {kind}" points="{points}"/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT + 4}" y="{height + 4:.1f}">'
            f"{_number(found[-1], panel.share)}</text>"
        )
    said = "; ".join(
        f"{line.label}: {_number(found[0], panel.share)} at the start, "
        f"{_number(found[-1], panel.share)} at the end"
        for line, _, found in series
    )
    label = escape(f"{panel.title}. {said}.")
    body = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'
    )


def _apart(heights: list[float], least: float = 12.0) -> list[float]:
    """Heights of labels, so that none covers another."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for below, above in zip(order, order[1:], strict=False):
        placed[above] = max(placed[above], placed[below] + least)
    over = max(0.0, max(placed) - (HEIGHT - BOTTOM))
    return [height - over for height in placed]


def _ticks(low: float, high: float) -> list[float]:
    """Four or five round numbers around the values."""
    rough = (high - low) / 4
    size = 10.0 ** floor(log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough - 1e-12)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _number(value: float, share: bool) -> str:
    if share:
        return f"{100 * value:.0f} %"
    return f"{value:.3g}"


def phases(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """(phase, mean seconds of one, percent of the longest) over the run, longest first."""
    seconds: dict[str, list[float]] = {}
    for entry in log:
        for name, value in entry.items():
            if name.startswith("seconds_") and isinstance(value, int | float):
                seconds.setdefault(name.removeprefix("seconds_"), []).append(float(value))
    means = {name: sum(values) / len(values) for name, values in seconds.items()}
    longest = max(means.values(), default=0.0) or 1.0
    ordered = sorted(means.items(), key=lambda item: -item[1])
    return [(name, mean, 100 * mean / longest) for name, mean in ordered]
