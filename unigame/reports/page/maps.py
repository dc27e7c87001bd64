"""Plots of two dimensions: the path of the LoRA weights, and where the run's pictures lie.

Both axes have one scale, because only distances mean something there; the axes themselves do not.
Kinds differ by shape beside their colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from unigame.reports.page.charts import Chart

WIDTH, HEIGHT, EDGE = 380, 280, 16
APART = 40.0  # px between numbers
LABELLED = 4  # parts of a path that are marked with their step
SHAPES = {
    "circle": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "triangle": "M0-4L4 3.2H-4z",
    "square": "M-3-3h6v6h-6z",
    "diamond": "M0-4.2L4.2 0L0 4.2L-4.2 0z",
    "cross": "M-3.2-3.2L3.2 3.2M-3.2 3.2L3.2-3.2",
}
KINDS = {  # kind -> (class, shape); drawn in this order
    "held-out": ("held", "cross"),
    "clean": ("clean", "circle"),
    "confirmed": ("drawn", "diamond"),
    "buffer": ("hard", "square"),
    "candidates": ("attacked", "triangle"),
}


# ---- the path of the weights ---------------------------------------------------------------------
def path(points: Sequence[Mapping[str, Any]]) -> Chart | None:
    """The main two directions of a path that ``dynamics/path.jsonl`` holds; None: too few points.

    Args:
        points: a start, then ``{"step": n, "moved": [...]}``.
    """
    moved = [np.zeros(len(points[0]["start"]))] if points else []
    moved += [np.asarray(point["moved"], dtype=float) for point in points[1:]]
    if len(moved) < 3:
        return None
    steps = [int(point["step"]) for point in points]
    at, share = main_directions(np.stack(moved))
    place = _fit(at)
    spots = [place(x, y) for x, y in at]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    parts = [f'<polyline class="line clean" points="{line}"/>']
    for number in sorted({round(part * (len(at) - 1) / LABELLED) for part in range(LABELLED + 1)}):
        (x, y), last = spots[number], len(at) - 1
        kind = "open" if number == 0 else "shut" if number == last else "small"
        parts.append(
            f'<circle class="stop {kind}" cx="{x:.1f}" cy="{y:.1f}" '
            f'r="{3 if kind == "small" else 5}"/>'
        )
        others = [spots[0], spots[last]]
        if number not in (0, last) and min(np.hypot(x - a, y - b) for a, b in others) < APART:
            continue  # its number would lie on that of the start or the end
        anchor = "end" if x > WIDTH / 2 else "start"
        shift = -9 if anchor == "end" else 9
        parts.append(
            f'<text x="{x + shift:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">'
            f"{'step ' if number in (0, last) else ''}{steps[number]}</text>"
        )
    far = float(np.linalg.norm(moved[-1]))
    gone = float(sum(np.linalg.norm(b - a) for a, b in zip(moved, moved[1:], strict=False)))
    said = (
        f"From step {steps[0]} to {steps[-1]} the weights went a way of {gone:.3g} and ended "
        f"{far:.3g} from where they began, {100 * far / max(gone, 1e-12):.0f} % of the way."
    )
    about = (
        f"{said} A low share is wandering: a high learning rate, or players that push U to and "
        f"fro. These two directions hold {100 * share:.0f} % of the movement; a smooth arch means "
        "nothing, random walks draw it, too."
    )
    title = "Path of the LoRA weights in two dimensions"
    return Chart(title, about, _svg(f"{title}. {said}", parts), ())


def main_directions(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Rows (n, d) along their two main directions, (n, 2), and the share of variance in them."""
    centred = rows - rows.mean(0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    at = np.zeros((len(rows), 2))
    kept = min(2, len(size))
    at[:, :kept] = left[:, :kept] * size[:kept]
    for axis in at.T:  # a fixed sign: the end is to the right of the start, and above it
        if axis[-1] < axis[0]:
            axis *= -1
    return at, float((size[:2] ** 2).sum() / max(float((size**2).sum()), 1e-300))


# ---- where the pictures lie ----------------------------------------------------------------------
def coverage(found: Mapping[str, Any]) -> Chart | None:
    """The map that ``dynamics/coverage.json`` holds; None: it holds no picture."""
    kinds = {kind: found["kinds"][kind] for kind in KINDS if kind in found.get("kinds", {})}
    everything = [point for part in kinds.values() for point in part["at"]]
    if not everything:
        return None
    place = _fit(np.asarray(everything, dtype=float))
    parts = []
    for kind, part in kinds.items():
        name, shape = KINDS[kind]
        for x, y in (place(*point) for point in part["at"]):
            parts.append(
                f'<path class="mark {name}" transform="translate({x:.1f} {y:.1f})" '
                f'd="{SHAPES[shape]}"/>'
            )
    listed = [
        kind for kind in ("clean", "candidates", "buffer", "confirmed", "held-out") if kind in kinds
    ]
    counts = ", ".join(f"{len(kinds[kind]['at'])} {kind}" for kind in listed)
    far = ", ".join(
        f"{kind} {kinds[kind]['nearest']:.2f}"
        for kind in listed
        if kind != "clean" and kinds[kind].get("nearest") is not None
    )
    said = f"{counts} pictures."
    if far:
        said += (
            " Distance to the nearest clean picture, where 1 is what clean ones have among "
            f"themselves: {far} (medians, in all dimensions)."
        )
    shown = 100 * sum(found.get("share", []))
    about = (
        f"{said} Near 0 nothing new is drawn; far beyond held-out pictures, what is drawn may no "
        "longer show what its label says. By the model's frozen vision features; these two "
        f"directions hold {shown:.0f} % of them."
    )
    title = "Coverage: where the pictures lie"
    legend = tuple((KINDS[kind][0], kind) for kind in listed)
    shapes = {KINDS[kind][0]: SHAPES[KINDS[kind][1]] for kind in listed}
    return Chart(title, about, _svg(f"{title}. {said}", parts), legend, shapes)


# ---- shared --------------------------------------------------------------------------------------
def _fit(at: np.ndarray) -> Any:
    """A function from the points' own units to the plot's, one scale for both axes."""
    low, high = at.min(0), at.max(0)
    span = np.maximum(high - low, 1e-12)
    room = np.array([WIDTH - 2 * EDGE, HEIGHT - 2 * EDGE])
    scale, middle = float((room / span).min()), (low + high) / 2

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            WIDTH / 2 + (float(x) - float(middle[0])) * scale,
            HEIGHT / 2 - (float(y) - float(middle[1])) * scale,
        )

    return place


def _svg(label: str, parts: Sequence[str]) -> Markup:
    frame = f'<rect class="frame" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="6"/>'
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{frame}'
        f"{''.join(parts)}</svg>"
    )
