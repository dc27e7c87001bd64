"""Training curves: the game as it was played, in small multiples.

``panels.py`` says which figures stand beside each other. A panel without any logged figure is left
out, so that plain fine-tuning gets two panels and the full game gets all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unigame.errors import UserError
from unigame.reports import style
from unigame.reports.panels import PANELS, Panel, Series, series


def save_curves(log_history: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the logged curves into one picture file and return its path.

    Raises:
        UserError: no panel finds any of its keys in the log.
    """
    drawn = [(panel, found) for panel in PANELS if (found := series(panel, log_history))]
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
        for ax, (panel, found) in zip(axes, drawn, strict=False):
            _draw_panel(ax, panel, found)
        for ax in axes[len(drawn) :]:
            ax.set_visible(False)
        for ax in axes[max(0, len(drawn) - columns) : len(drawn)]:
            ax.set_xlabel("step")
        return style.save(figure, path)


def _draw_panel(ax: Axes, panel: Panel, drawn: Series) -> None:
    for line, steps, values in drawn:
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
        ax.set_ylim(bottom=min(0.0, *(min(values) for _, _, values in drawn)))
    ax.tick_params(length=0)
    if len(drawn) > 1:
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(drawn),
            handlelength=1.0,
            handletextpad=0.4,
            columnspacing=1.0,
            borderpad=0,
            borderaxespad=0.35,
        )
