"""What the two halves of a model teach each other, over seeds: the README's picture.

    python benchmarks/teaching_picture.py VERIFY.json ALL.json --figure FILE.png

    VERIFY.json  what ``evidence.py --preset verify --json`` wrote: U teaches G
    ALL.json     of preset ``all`` or ``imagine``: G teaches U

Levels, not differences: a reader wants to know how good a drawing is, and not only how much better.
Dots are seeds, a tick is their mean, a bar the 95 % interval of the mean over seeds, from three on:
that of two reaches six times as far as they are apart, to either side.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evidence_report import split_of
from evidence_statistics import interval, known

from unigame.errors import UserError

DRAWING = {
    "base": "before training",
    "sft": "fine-tuning alone",
    "real_pairs": "+ real pictures of the captions",
    "unverified": "+ own drawings, unverified",
    "verify": "+ own drawings that U confirms",
    "oracle": "+ those that an exact reader confirms",
}
"""Arms of preset ``verify``, in the order of the rows."""
ANSWERING = {
    "base": "before training",
    "sft": "20 labelled scenes alone",
    "verify": "+ verify",
    "unverified": "+ imagine, unverified",
    "no_rehearsal": "+ imagine, no rehearsal",
    "imagine": "+ imagine",
    "all": "+ imagine and verify",
    "real_scenes": "+ as many real labelled scenes",
}
"""Of presets ``all`` and ``imagine``."""
LEAST = 3  # seeds of an interval that says something
HIGHLIGHTED = ("verify", "imagine", "all")


def draw(verify: Mapping[str, Any], imagine: Mapping[str, Any], file: Path) -> None:
    """Four panels: what verify does to drawing; and the new task, the old ones, and drawing.

    Raises:
        UserError: a result lacks what its panel shows.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from unigame.reports.style import RC, save

    panels = (
        ("U teaches G: drawings exactly right", verify, "t2i_exact", DRAWING),
        ("G teaches U: a new task", imagine, "new_task", ANSWERING),
        ("old tasks after it", imagine, "old_tasks", ANSWERING),
        ("drawings after it", imagine, "t2i_exact", ANSWERING),
    )
    for _, result, metric, _ in panels:
        if metric not in result["metrics"]:
            raise UserError(
                f"{metric}: not measured in a result of {', '.join(result['metrics'])}; give first "
                "one of preset verify, then one of preset all or imagine"
            )
    with pyplot.rc_context({**RC, "axes.grid.axis": "x"}):
        figure, axes = pyplot.subplots(1, 4, figsize=(13, 2.5), layout="constrained")
        for axis, (title, result, metric, names) in zip(axes, panels, strict=True):
            _panel(axis, result["metrics"][metric], names)
            axis.set_title(title)
            seeds = len(result["seeds"])
            axis.set_xlabel(f"%, {seeds} seed{'s' if seeds > 1 else ''}")
        for axis in axes[1:]:
            axis.set_xlim(-3, 103)
        for axis in axes[2:]:
            axis.set_yticklabels([])  # those of the panel before
        save(figure, file)
        pyplot.close(figure)


def _panel(axis: Any, values: Mapping[str, Any], names: Mapping[str, str]) -> None:
    from unigame.reports.style import ADVERSARIAL, MUTED

    shown = {arm: known(values[arm]) for arm in names if arm in values}
    for place, (arm, dots) in enumerate(shown.items()):
        colour = ADVERSARIAL if arm in HIGHLIGHTED else MUTED
        axis.scatter(dots, [place] * len(dots), s=10, color=colour, alpha=0.45, linewidth=0)
        found = interval(dots)
        if found["mean"] is not None:
            axis.plot(found["mean"], place, "|", color=colour, markersize=11, markeredgewidth=2)
        if found["low"] is not None and len(dots) >= LEAST:
            axis.plot([found["low"], found["high"]], [place, place], color=colour)
    axis.set_yticks(range(len(shown)), [names[arm] for arm in shown])
    axis.set_ylim(len(shown) - 0.5, -0.5)


def main() -> None:
    """Read both results, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verify", type=Path, help="result of preset verify")
    parser.add_argument("imagine", type=Path, help="result of preset all or imagine")
    parser.add_argument("--figure", type=Path, required=True, help="picture to write")
    options = parser.parse_args()
    results = [json.loads(file.read_text("utf-8")) for file in (options.verify, options.imagine)]
    if len(splits := {split_of(result) for result in results}) > 1:
        raise UserError(f"results of splits {' and '.join(sorted(splits))} in one picture")
    draw(*results, options.figure)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"teaching_picture.py: {error}")
