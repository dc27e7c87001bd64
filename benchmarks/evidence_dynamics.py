"""How the game went in the runs of ``evidence.py``: means over seeds, and their spread, by step.

    python benchmarks/evidence_dynamics.py runs/evidence/table4-1a2b3c4d --arms selfplay random \
        --json dynamics.json --figure dynamics.png

A column for each arm. Rows, after the paper's figures of training: losses (clean, attacked, hard);
who is ahead (right answers that the attack takes, less those that redrawing alone takes); which
styles C chooses; and how many verified drawings of each style U misreads: C gains by choosing only
where these differ. Lines are means over seeds, bands one standard deviation. ``--json`` keeps what
the picture shows, since an output folder is seldom kept; ``--from`` draws it again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unigame.errors import UserError

Curve = Sequence[Mapping[str, float]]
"""Points of a figure: step, mean and sd over seeds."""
Curves = Mapping[str, Mapping[str, Curve]]
"""``{arm: {figure: curve}}``."""
LOSSES = (
    ("clean_answer_ce", "clean", "CLEAN"),
    ("redrawn_ce", "redrawn", "DRAWN"),
    ("adversarial_ce", "attacked", "ADVERSARIAL"),
    ("styled_ce", "drawn in a style", "RIGHT"),
    ("hard_answer_ce", "hard (replayed)", "HARD"),
)
TAKEN, ALONE, AHEAD = "attack_success_rate", "redrawn_success_rate", "ahead"
OF_STYLES = ("_used", "_misread")
PERCENT = 100


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, nargs="?", help="folder of evidence.py's runs")
    parser.add_argument("--from", dest="kept", type=Path, help="file that --json wrote")
    parser.add_argument("--arms", nargs="+", help="default: all that were played")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--figure", type=Path, help="picture to write")
    options = parser.parse_args(argv)
    if (options.output is None) == (options.kept is None):
        parser.error("give a folder of runs, or --from a file that --json wrote")
    return options


def logs_of(output: Path, arm: str) -> dict[int, list[dict[str, Any]]]:
    """The log of every seed that has trained this arm."""
    found = {}
    for file in sorted(output.glob(f"seed-*/{arm}/trained.json")):
        seed = int(file.parents[1].name.removeprefix("seed-"))
        found[seed] = json.loads(file.read_text(encoding="utf-8"))["log"]
    return found


def arms_of(output: Path) -> list[str]:
    """Arms in which pictures were attacked, in alphabetical order."""
    names = sorted({file.parent.name for file in output.glob("seed-*/*/trained.json")})
    return [name for name in names if any(_attacked(log) for log in logs_of(output, name).values())]


def _attacked(log: Sequence[Mapping[str, Any]]) -> bool:
    return any(TAKEN in entry for entry in log)


def curves(logs: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, list[dict[str, float]]]:
    """Mean and spread of every figure over the seeds that logged it at a step."""
    values: dict[str, dict[int, list[float]]] = {}
    for log in logs.values():
        for entry in log:
            for name, value in _figures(entry).items():
                values.setdefault(name, {}).setdefault(int(entry["step"]), []).append(value)
    return {
        name: [
            {
                "step": step,
                "mean": round(statistics.mean(of_step), 5),
                "sd": round(statistics.stdev(of_step), 5) if len(of_step) > 1 else 0.0,
            }
            for step, of_step in sorted(by_step.items())
        ]
        for name, by_step in sorted(values.items())
    }


def _figures(entry: Mapping[str, Any]) -> dict[str, float]:
    known = [name for name, _, _ in LOSSES]
    known += [name for name in entry if name.startswith("style_") and name.endswith(OF_STYLES)]
    found = {name: float(entry[name]) for name in known if name in entry}
    if TAKEN in entry and ALONE in entry:
        found[AHEAD] = float(entry[TAKEN]) - float(entry[ALONE])
    return {name: value for name, value in found.items() if math.isfinite(value)}


def collect(output: Path, arms: Sequence[str] | None) -> dict[str, Any]:
    """Everything that the picture needs.

    Raises:
        UserError: the folder holds no run of an arm.
    """
    chosen = list(arms or arms_of(output))
    if not chosen:
        raise UserError(f"{output} holds no run that attacked pictures; give the folder of runs")
    found: dict[str, Any] = {}
    for arm in chosen:
        logs = logs_of(output, arm)
        if not logs:
            raise UserError(f"{output} holds no finished run of arm {arm}")
        found[arm] = {"seeds": sorted(logs), "curves": curves(logs)}
    file = output / "settings.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"arms": {}}
    played = [
        settings["arms"].get(arm, {}).get("methods", {}).get("selfplay", {}) for arm in chosen
    ]
    styles = next((own["styles"] for own in played if own.get("styles")), [])
    return {"arms": found, "styles": list(styles)}


def draw(found: Mapping[str, Any], file: Path) -> None:
    """The picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from unigame.reports import style

    arms: Mapping[str, Any] = found["arms"]
    names = [text.partition(" ")[0] for text in found["styles"]]
    # An arm of one style draws plainly: there is nothing to choose.
    has_styles = bool(names) and any("style_1_used" in arm["curves"] for arm in arms.values())
    # Logs that were kept before this figure was have no row of it.
    is_misread = has_styles and any("style_1_misread" in arm["curves"] for arm in arms.values())
    rows = 2 + has_styles + is_misread
    most = sorted(range(len(names)), key=lambda number: -_most_used(arms, number))[:2]
    shown = dict(zip(most, (style.HARD, style.DRAWN), strict=False))
    with pyplot.rc_context(style.RC):
        figure, axes = pyplot.subplots(
            rows,
            len(arms),
            figsize=(3.4 * len(arms), 2.3 * rows + 0.6),
            squeeze=False,
            sharex=True,
            sharey="row",
            layout="constrained",
        )
        for column, (arm, of_arm) in zip(axes.T, arms.items(), strict=True):
            own: Mapping[str, Curve] = of_arm["curves"]
            column[0].set_title(f"{arm} ({len(of_arm['seeds'])} seeds)")
            for name, label, colour in LOSSES:
                _line(column[0], own.get(name), label, getattr(style, colour))
            _line(column[1], own.get(AHEAD), "", style.ADVERSARIAL, PERCENT)
            column[1].axhline(0, color=style.MUTED, linewidth=0.8)
            for number in range(len(names) if "style_1_used" in own else 0):
                colour = shown.get(number, style.MUTED)
                label = names[number] if number in shown else "the others"
                for axis, what in zip(column[2:], OF_STYLES, strict=False):
                    _line(axis, own.get(f"style_{number}{what}"), label, colour, PERCENT)
            last = rows - 1 if rows < 3 or column[2].has_data() else 1
            for axis in column[last + 1 :]:  # an arm without a choice of styles
                axis.axis("off")
            column[last].tick_params(labelbottom=True)
            column[last].set_xlabel("step")
        texts = ("nats a token", "taken by C, points", "drawings by style, %", "misread of them, %")
        for row, text in zip(axes, texts, strict=False):
            first = next(axis for axis in row if axis.axison)
            first.set_ylabel(text)
            first.tick_params(labelleft=True)
        for row in (0, 2)[: 2 if has_styles else 1]:
            handles = {
                label: handle
                for axis in axes[row]
                for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
            }
            axes[row, -1].legend(
                handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1, 0.5)
            )
        style.save(figure, file)
        pyplot.close(figure)


def _most_used(arms: Mapping[str, Any], number: int) -> float:
    """Largest mean share of a style in any arm."""
    curves = [arm["curves"].get(f"style_{number}_used") or [] for arm in arms.values()]
    return max((statistics.fmean(p["mean"] for p in curve) for curve in curves if curve), default=0)


def _line(axis: Any, curve: Curve | None, label: str, colour: Any, times: float = 1) -> None:
    if not curve:
        return
    steps = [point["step"] for point in curve]
    means = [times * point["mean"] for point in curve]
    # What is never below 0 has no spread below it.
    least = 0.0 if all(point["mean"] >= 0 for point in curve) else -math.inf
    lows = [max(least, times * (point["mean"] - point["sd"])) for point in curve]
    highs = [times * (point["mean"] + point["sd"]) for point in curve]
    axis.plot(steps, means, color=colour, label=label or None)
    axis.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Collect or read, write, draw."""
    options = parse_arguments(argv)
    if options.kept:
        found: dict[str, Any] = json.loads(options.kept.read_text(encoding="utf-8"))
        if missing := set(options.arms or ()) - set(found["arms"]):
            raise UserError(
                f"{options.kept} has no arm {min(missing)}; it has {', '.join(found['arms'])}"
            )
        if options.arms:
            found["arms"] = {arm: found["arms"][arm] for arm in options.arms}
    else:
        found = collect(options.output, options.arms)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.figure:
        draw(found, options.figure)
    for arm, of_arm in found["arms"].items():
        seeds = ", ".join(map(str, of_arm["seeds"]))
        print(f"{arm}: {len(of_arm['curves'])} figures, seeds {seeds}")
    return found


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"evidence_dynamics.py: {error}")
