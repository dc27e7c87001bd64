"""The picture of ``scaling.py``: a column for each axis, cost above and ratio below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# axis -> its label and its symbol
LABELS = {
    "tokens": ("image tokens N", "N"),
    "batch": ("batch B", "B"),
    "candidates": ("candidates K", "K"),
    "width": ("width H of the LM", "H"),
}
COLOURS = {"unigame": ("UniGame", "#c0392b"), "sft": ("SFT", "#2c6fbb")}
STYLE: dict[Any, Any] = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}


def draw(found: dict[str, Any], place: Path) -> None:
    """Seconds (operations where nothing was timed) and ratios of a record of ``scaling.py``.

    Args:
        found: the record, as ``scaling.main`` returns and writes it.
        place: file to write, a PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = found["axes"]
    with pyplot.rc_context(STYLE):
        figure, grid = pyplot.subplots(
            2,
            len(axes),
            figsize=(max(3.0 * len(axes), 6.0), 4.9),
            height_ratios=(3, 2),
            sharex="col",
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        for (cost, ratio), (axis, figures) in zip(grid.T, axes.items(), strict=True):
            _cost(cost, axis, figures)
            _ratio(ratio, figures["points"])
            ratio.set_xlabel(LABELS[axis][0])
        timed = "seconds" in next(iter(axes.values()))["points"][0]
        grid[0, 0].set_ylabel("seconds a step" if timed else "GFLOP a step")
        grid[1, 0].set_ylabel("UniGame / SFT")
        highest = max(
            max(point.get(name, 0) for name in ("ratio", "ratio_counted"))
            for figures in axes.values()
            for point in figures["points"]
        )
        grid[1, 0].set_ylim(0, 1.1 * highest)  # shared by the row
        handles = [*grid[0, 0].get_lines(), *grid[1, 0].get_lines()]
        figure.legend(
            handles,
            [handle.get_label() for handle in handles],
            loc="outside upper left",
            ncols=len(handles),
            frameon=False,
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(place, dpi=150)
        pyplot.close(figure)


def _cost(panel: Any, axis: str, figures: dict[str, Any]) -> None:
    """Both steps over the sizes, and their exponents in the empty corner below them."""
    points = figures["points"]
    measure = "seconds" if "seconds" in points[0] else "gflops"
    sizes = [point["size"] for point in points]
    for height, (kind, (label, colour)) in zip((0.14, 0.03), COLOURS.items(), strict=True):
        values = [point[measure][kind] for point in points]
        panel.plot(sizes, values, "o-", color=colour, label=label, markersize=4)
        power = f"$\\propto {LABELS[axis][1]}^{{{figures['slopes'][measure][kind]:.2f}}}$"
        panel.text(0.97, height, power, color=colour, ha="right", transform=panel.transAxes)
    panel.set_yscale("log")
    panel.margins(y=0.25)
    _ticks(panel, sizes)


def _ratio(panel: Any, points: list[dict[str, Any]]) -> None:
    """What a UniGame step costs in SFT steps: by the clock, and by operations."""
    sizes = [point["size"] for point in points]
    counted = [point["ratio_counted"] for point in points]
    panel.plot(sizes, counted, "o--", color="#999999", label="ratio of operations", markersize=3)
    if "ratio" in points[0]:
        timed = [point["ratio"] for point in points]
        panel.plot(sizes, timed, "o-", color="#333333", label="ratio of seconds", markersize=4)
    _ticks(panel, sizes)


def _ticks(panel: Any, sizes: list[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()
    panel.grid(alpha=0.25, linewidth=0.6)
