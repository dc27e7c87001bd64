"""Pictures of what the seeds of ``evidence.py`` gave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence_statistics import CONTROL, Metrics, Values, fewer, interval

TITLES = {"ood": "out of distribution", "id": "in distribution"}
LABELS = {"selfplay": "the game (selfplay)"}
OWN_SCALE = 2.0  # times the usual reach of the panels that share a scale


def draw(result: Mapping[str, Any], file: Path) -> None:
    """A picture: for each metric every arm less fine-tuning, seeds as dots, intervals as bars.

    Exact answers (``id``, ``ood`` and its conditions) come first and share one scale, so that a
    point is as long in each; one that reaches much farther has its own, and says so.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from unigame.reports.style import MUTED, RC

    metrics: Metrics = result["metrics"]
    arms = [arm for arm in next(iter(metrics.values())) if arm != CONTROL]
    answers = [name for name in metrics if name in TITLES or name.startswith("ood/")]
    answers.sort(key=lambda name: ([*TITLES, name].index(name), name))
    panels = answers + [name for name in metrics if name not in answers]
    reach = {name: _reach(metrics[name], arms) for name in answers}
    usual = OWN_SCALE * sorted(reach.values())[len(reach) // 2] if reach else 0.0
    alike = [name for name in answers if reach[name] <= usual]
    limit = 1.05 * max((reach[name] for name in alike), default=1.0) or 1.0
    columns = 4
    rows = math.ceil(len(panels) / columns)
    with pyplot.rc_context(RC):
        size = (3.1 * columns, 0.7 + rows * (0.6 + 0.24 * len(arms)))
        figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis, name in zip(axes.flat, panels, strict=False):
            own = " (its own scale)" if name in answers and name not in alike else ""
            axis.set_title(TITLES.get(name, name.removeprefix("ood/")) + own, fontsize=10)
            axis.axvline(0, color=MUTED, linewidth=0.8)
            for place, arm in enumerate(arms):
                _draw_arm(axis, place, arm, metrics[name])
            if name in alike:
                axis.set_xlim(-limit, limit)
            labels = [LABELS.get(arm, arm) + fewer(result, arm) for arm in arms]
            axis.set_yticks(range(len(arms)), labels)
            axis.set_ylim(len(arms) - 0.5, -0.5)
        seeds = f"{len(result['seeds'])} seeds, where no other number stands"
        figure.supxlabel(f"points above {CONTROL}; dots: seeds; bars: 95 % over {seeds}")
        figure.tight_layout()
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150)
        pyplot.close(figure)


def _dots(values: Mapping[str, Values], arm: str) -> list[float]:
    """An arm less fine-tuning, a number for each seed that has both."""
    pairs = zip(values[arm], values[CONTROL], strict=True)
    return [a - b for a, b in pairs if a is not None and b is not None]


def _reach(values: Mapping[str, Values], arms: Sequence[str]) -> float:
    """How far from 0 dots and bars go."""
    ends = [0.0]
    for arm in arms:
        dots = _dots(values, arm)
        found = interval(dots)
        ends += dots + [end for end in (found["low"], found["high"]) if end is not None]
    return max(map(abs, ends))


def _draw_arm(axis: Any, place: int, arm: str, values: Mapping[str, Values]) -> None:
    from unigame.reports.style import ADVERSARIAL, CLEAN, DRAWN, MUTED, RIGHT

    colours = {"selfplay": ADVERSARIAL, "augmented": RIGHT, "paper": DRAWN, "base": MUTED}
    colour = colours.get(arm, CLEAN)
    dots = _dots(values, arm)
    axis.scatter(dots, [place] * len(dots), s=9, color=colour, alpha=0.5, linewidth=0)
    found = interval(dots)
    if found["mean"] is not None:
        axis.plot(found["mean"], place, "|", color=colour, markersize=9)
    if found["low"] is not None:
        axis.plot([found["low"], found["high"]], [place, place], color=colour)
