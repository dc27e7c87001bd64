"""Plots of a page as inline SVG: colours by class, so that they follow the page's theme.

Every line has a dash pattern of its own beside its colour, and its last value at its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
BLOCK = "M-4-4h8v8h-8z"
DASHED = (style.DRAWN, style.HARD, style.WRONG)
AHEAD = "Who is ahead: right answers that C takes beyond redrawing"
LEAST_BAR = 3.0  # px: a lead of 0 is U's, and is seen
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
AGE = Panel(
    "Age in the buffer, in steps since it was drawn",
    (
        Line("age_q75", "older quarter", style.WRONG),
        Line("age_q50", "median", style.HARD),
        Line("age_q25", "younger quarter", style.CLEAN),
    ),
)
ABOUT: dict[str, str] = {
    LOSSES.title: "Redrawn is what drawing alone does; attacked above redrawn is C's doing.",
    panels.LOST.title: "Of the answers that are right on the clean picture.",
    HARDNESS.title: "The loss of the answer when it was drawn, then at its latest replay.",
    AGE.title: "Rising by a step a step: nothing new enters, and U reads the same pictures again.",
    panels.SIMILARITY.title: "Below clip_floor a candidate is never kept.",
    panels.BUFFER.title: "Replay waits for buffer_min_size.",
}
for _method in ("verify", "imagine"):
    ABOUT[f"{_method}: is the verifier right?"] = (
        "By the independent reader. Precision: of the confirmed drawings, those that are right; "
        "recall: of the right ones, those confirmed. Wrong ones confirmed more and more often: "
        "the verifier drifts."
    )
    ABOUT[f"{_method}: how different drawings are"] = (
        "Of each round's own drawings. Both fall where drawings become alike."
    )
GAME, MODEL, STORE, ATTACK = "The game", "The model", "The buffer", "The attack"
DRAWING = "The loss of drawing"
VERIFIED, IMAGINED = "Drawings that U verified, to teach G", "Drawings that U verified, to teach U"
DYNAMICS = {
    GAME: (LOSSES, panels.LOST),
    STORE: (panels.BUFFER, HARDNESS, AGE, panels.ACCEPTED),
    ATTACK: (panels.SIMILARITY, panels.CODES, panels.SIZE),
    VERIFIED: panels.VERIFIED,
    IMAGINED: panels.IMAGINED,
    DRAWING: (panels.DRAWN,),
}


@dataclass(frozen=True)
class Chart:
    """A plot with the words beside it."""

    title: str
    about: str
    svg: Markup
    lines: tuple[tuple[str, str], ...]
    """(class, label) of each line or kind of mark, for the legend."""
    shapes: Mapping[str, str] = field(default_factory=dict)
    """Outline of each kind of mark, by class; none: they are lines."""


@dataclass(frozen=True)
class Group:
    """Plots that belong together, and why others are not there."""

    title: str
    charts: list[Chart]
    missing: tuple[str, ...] = ()


def dynamics(log: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The plots that have a figure, in their groups."""
    groups = []
    for title, of_group in DYNAMICS.items():
        charts = _charts(of_group, log)
        if title == GAME and (ahead := timeline(log)):
            charts.insert(1, ahead)
        if charts:
            groups.append(Group(title, charts))
    return groups


def _charts(of_group: Sequence[Panel], log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    found = [(panel, series) for panel in of_group if (series := panels.series(panel, log))]
    return [
        Chart(
            panel.title,
            ABOUT.get(panel.title, ""),
            plot(panel, series),
            tuple((CLASSES[line.colour], line.label) for line, _, _ in series),
        )
        for panel, series in found
    ]


def timeline(log: Sequence[Mapping[str, Any]]) -> Chart | None:
    """A bar for each log: up where C takes more than redrawing alone does, else down."""
    leads = [
        (float(entry["step"]), float(lost) - float(alone))
        for entry in log
        if isinstance(lost := entry.get("attack_success_rate"), int | float)
        and isinstance(alone := entry.get("redrawn_success_rate"), int | float)
        and "step" in entry
    ]
    if not leads:
        return None
    steps, values = [step for step, _ in leads], [lead for _, lead in leads]
    first = max(0.0, steps[0] - (steps[1] - steps[0] if len(steps) > 1 else steps[0]))
    most = max(0.05, *map(abs, values))
    ticks = _ticks(min(-most / 2, *values), max(most, *values))
    low, high = ticks[0], ticks[-1]

    def x(step: float) -> float:
        return LEFT + (step - first) / (steps[-1] - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_rule(tick, y(tick), share=True) for tick in ticks]
    for begun, step, lead in zip([first, *steps], steps, values, strict=False):
        kind, height = ("attacked", y(0) - y(lead)) if lead > 0 else ("clean", y(lead) - y(0))
        height = max(LEAST_BAR, height)
        top = y(0) - height if lead > 0 else y(0)
        parts.append(
            f'<rect class="bar {kind}" x="{x(begun) + 0.5:.1f}" y="{top:.1f}" '
            f'width="{max(1.0, x(step) - x(begun) - 1):.1f}" height="{height:.1f}"/>'
        )
    parts.append(f'<text x="{LEFT + 4}" y="{TOP + 11}">C ahead</text>')
    parts.append(f'<text x="{LEFT + 4}" y="{HEIGHT - BOTTOM - 5}">U ahead</text>')
    parts += _steps_axis([(x(first), first), (x(steps[-1]), steps[-1])])
    ahead = sum(lead > 0 for lead in values)
    said = (
        f"C was ahead in {ahead} of {len(values)} logs, by {100 * max(0.0, *values):.0f} % of the "
        f"right answers at most, and at the end by {100 * values[-1]:.0f} %."
    )
    about = f"{said} Redrawing alone is the baseline: what it takes is not C's doing."
    lines = (("attacked", "C ahead"), ("clean", "U ahead"))
    label = escape(f"{AHEAD}. {said}")
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    svg = Markup(f"{opening}{''.join(parts)}</svg>")
    return Chart(AHEAD, about, svg, lines, dict.fromkeys(("attacked", "clean"), BLOCK))


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

    parts = [_rule(tick, y(tick), panel.share) for tick in ticks]
    parts += _steps_axis([(x(step), step) for step in (first, last)])
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


def _rule(tick: float, y: float, share: bool) -> str:
    kind = "zero" if tick == 0 else "rule"
    return (
        f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_number(tick, share)}</text>'
    )


def _steps_axis(ends: Sequence[tuple[float, float]]) -> list[str]:
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        *(
            f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{step:.0f}</text>'
            for x, step in ends
        ),
        f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">step</text>',
    ]


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


@dataclass(frozen=True)
class Phase:
    """What a part of a step took: mean seconds of one pass, and MiB at its worst moment.

    Shares are percent of the longest, and of the largest.
    """

    name: str
    seconds: float
    seconds_share: float
    memory: float | None
    memory_share: float


def phases(log: Sequence[Mapping[str, Any]]) -> list[Phase]:
    """The phases of a step over the run, the longest first."""
    seconds, memory = _by_phase(log, "seconds_"), _by_phase(log, "memory_")
    means = {name: sum(values) / len(values) for name, values in seconds.items()}
    longest = max(means.values(), default=0.0) or 1.0
    peaks = {name: max(values) for name, values in memory.items()}
    largest = max(peaks.values(), default=0.0) or 1.0
    return [
        Phase(
            name, mean, 100 * mean / longest, peaks.get(name), 100 * peaks.get(name, 0.0) / largest
        )
        for name, mean in sorted(means.items(), key=lambda item: -item[1])
    ]


def _by_phase(log: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for entry in log:
        for name, value in entry.items():
            if name.startswith(prefix) and isinstance(value, int | float):
                found.setdefault(name.removeprefix(prefix), []).append(float(value))
    return found
