"""Training curves: the game as it was played, in small multiples.

The input is the ``log_history`` of a transformers Trainer: a list of dicts with ``step`` and
whatever was logged then. A panel without any logged figure is left out, so that plain fine-tuning
gets two panels and the full game gets all of them.

A candidate differs from its original by the redrawing and by C. Wherever the attack has a line, the
same pictures redrawn without C have one beside it: the gap between the two is C's doing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unigame.errors import UserError
from unigame.reports import style


class Line(NamedTuple):
    """One logged key, drawn with a label and a colour."""

    key: str
    label: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """One small plot: its title (with the unit), its lines, and whether it shows shares of one."""

    title: str
    lines: tuple[Line, ...]
    share: bool = False


_LOSS = (Line("clean_ce", "clean", style.CLEAN), Line("hard_ce", "hard (buffer)", style.HARD))
_CROSS_ENTROPY = (
    Line("clean_answer_ce", "clean", style.CLEAN),
    Line("redrawn_ce", "redrawn", style.DRAWN),
    Line("adversarial_ce", "attacked", style.ADVERSARIAL),
)
_LOST = (
    Line("redrawn_success_rate", "redrawn", style.DRAWN),
    Line("attack_success_rate", "attacked", style.ADVERSARIAL),
)
_CODES = (
    Line("redrawn_codes_changed", "redrawn", style.DRAWN),
    Line("codes_changed", "attacked", style.ADVERSARIAL),
    Line("attack_codes_changed", "by C alone", style.WRONG),
)
_SIMILARITY = (
    Line("redrawn_similarity", "redrawn", style.DRAWN),
    Line("similarity", "attacked", style.ADVERSARIAL),
)
_SIZE = (
    Line("eps", "eps", style.ADVERSARIAL),
    Line("delta_relative", "relative to the states", style.DRAWN),
)
_SECONDS = (
    Line("seconds_understand", "understand", style.CLEAN),
    Line("seconds_challenge", "challenge", style.ADVERSARIAL),
    Line("seconds_mine", "mine", style.HARD),
)
PANELS = (
    Panel("Loss that U learns, with the end mark", _LOSS),
    Panel("Cross-entropy of the answer's own tokens", _CROSS_ENTROPY),
    Panel("Right answers that are lost", _LOST, share=True),
    Panel("Image codes that are other ones", _CODES, share=True),
    Panel("Similarity to the original", _SIMILARITY, share=True),
    Panel("Size of the perturbation", _SIZE),
    Panel(
        "Candidates kept as hard samples",
        (Line("acceptance_rate", "accepted", style.HARD),),
        share=True,
    ),
    Panel("Hard samples in the buffer", (Line("buffer_size", "items", style.HARD),)),
    Panel("Seconds per phase of a step", _SECONDS),
)


def save_curves(log_history: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the logged curves into one picture file and return its path.

    Raises:
        UserError: no panel finds any of its keys in the log.
    """
    drawn = [(panel, series) for panel in PANELS if (series := _series(panel, log_history))]
    if not drawn:
        keys = sorted({key for entry in log_history for key in entry})
        raise UserError(
            f"nothing to draw: the log of {len(log_history)} entries holds {keys or 'no keys'}; "
            "train with logging_steps > 0"
        )
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    with rc_context(style.RC):
        figure = Figure(figsize=(3.3 * columns, 2.25 * lines), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax, (panel, series) in zip(axes, drawn, strict=False):
            _draw_panel(ax, panel, series)
        for ax in axes[len(drawn) :]:
            ax.set_visible(False)
        for ax in axes[max(0, len(drawn) - columns) : len(drawn)]:
            ax.set_xlabel("step")
        return style.save(figure, path)


Series = list[tuple[Line, list[float], list[float]]]


def _series(panel: Panel, log_history: Sequence[Mapping[str, Any]]) -> Series:
    """The lines of a panel that were logged at all, with their steps and finite values."""
    found: Series = []
    for line in panel.lines:
        points = [
            (float(entry["step"]), float(entry[line.key]))
            for entry in log_history
            if "step" in entry and _is_finite(entry.get(line.key))
        ]
        if points:
            steps, values = zip(*points, strict=True)
            found.append((line, list(steps), list(values)))
    return found


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _draw_panel(ax: Axes, panel: Panel, series: Series) -> None:
    for line, steps, values in series:
        marker = "o" if len(steps) == 1 else None  # a single point has no line to show
        ax.plot(steps, values, color=line.colour, label=line.label, marker=marker, markersize=4)
    # Titles leave room for a line of labels between them and the plot, clear of every curve.
    ax.set_title(panel.title, pad=18)
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if panel.share:
        ax.set_ylim(-0.02, 1.02)
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    else:
        ax.set_ylim(bottom=min(0.0, *(min(values) for _, _, values in series)))
    ax.tick_params(length=0)
    if len(series) > 1:
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(series),
            handlelength=1.0,
            handletextpad=0.4,
            columnspacing=1.0,
            borderpad=0,
            borderaxespad=0.35,
        )
