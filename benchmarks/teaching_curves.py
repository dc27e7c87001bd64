"""How much the two halves of a model teach each other: learning curves of imagine and of verify.

    python benchmarks/teaching_curves.py --seeds 100 101 --json curves.json --figure curves.png

scenes    preset imagine with 10, 20, 60 and 200 labelled scenes of the new task: fine-tuning on
          them alone, and with imagined ones
captions  the same with 20 scenes, and 75 to 600 captions to imagine
rounds    preset verify, one long run, a log for each round: of its drawings, how many are right,
          how many U confirms, how unlike two drawings of one caption are, how many of a caption
          are different, and how many codes are used. (The store would not show drawings becoming
          alike: it only fills.)

Points are settings of evidence_presets.yaml changed in one number, and in rounds as often as the
run is logged; what a point is measured on is the validation split. A finished run is never done
again: a stopped command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, and in the workers too
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import evidence
import evidence_presets
import record
from evidence_arms import Job

from unigame.backbones import load_backbone
from unigame.errors import UserError
from unigame.system.console import make_console

SPLIT = "validation"
SCENES = (10, 20, 60, 200)
CAPTIONS = (75, 150, 300, 600)
MEASURED = ("new_task", "old_tasks", "t2i_exact")
OF_ROUNDS = (
    *("true", "kept", "precision", "recall", "false_confirmed"),
    *("variety", "distinct", "round_codes_used"),
)
LOGS = 10  # of a run, as evidence_arms has it
CURVES = ("scenes", "captions", "rounds")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=CURVES)
    parser.add_argument("--model", default="janus-nano", help="bundled name or folder")
    parser.add_argument("--scenes", type=int, nargs="+", default=SCENES)
    parser.add_argument("--captions", type=int, nargs="+", default=CAPTIONS)
    parser.add_argument("--steps", type=int, default=300, help="of verify's long run")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change both presets"
    )
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--output", type=Path, default=Path("runs/teaching_curves"))
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--figure", type=Path, help="picture to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Do what is not done yet, print, write the files.

    Raises:
        UserError: settings or a model that cannot be used, before anything is trained.
    """
    options = parse_arguments(argv)
    weights = load_backbone(options.model, dtype="float32").weights_digest()
    # curve -> number of the axis -> arm -> a job of each seed
    planned: dict[str, dict[int, dict[str, list[Job]]]] = {}
    for curve in options.curves:
        planned[curve] = {
            number: _jobs(options, weights, curve, preset, changes, arms)
            for number, preset, changes, arms in _points(options, curve)
        }
    jobs = list(
        {
            job.folder: job  # two curves share a point
            for points in planned.values()
            for arms in points.values()
            for of_seeds in arms.values()
            for job in of_seeds
        }.values()
    )
    left = [job for job in jobs if not job.result.exists()]
    evidence.run(left, len(jobs), options.workers, make_console())
    found: dict[str, Any] = {"split": SPLIT, "seeds": options.seeds}
    for curve, points in planned.items():
        read = _rounds if curve == "rounds" else _measured
        found[curve] = {str(number): read(arms) for number, arms in points.items()}
    settings = {name: value for name, value in vars(options).items() if name not in _FILES}
    result = record.write(found, settings, options.json)
    if options.figure:
        draw(result, options.figure)
    return result


_FILES = ("json", "figure", "output")
_UNMEASURED = ("measured.ood=0",)  # no curve shows it


def _points(
    options: argparse.Namespace, curve: str
) -> list[tuple[int, str, list[str], tuple[str, ...]]]:
    """(number on the axis, preset, what it changes, arms) of a curve."""
    if curve == "rounds":
        every = max(1, options.steps // LOGS)  # a log for each round, and a round for each log
        own = "arms.verify.methods.verify"
        changes = [
            *(f"steps={options.steps}", f"{own}.every={every}"),
            f"{own}.first_captions=null",  # rounds of one size, or their codes do not compare
            f"{own}.drawings=2",  # one has nothing to differ from
        ]
        return [(options.steps, "verify", [*changes, *_UNMEASURED], ("verify",))]
    if curve == "scenes":
        name, numbers, arms = "task_scenes", options.scenes, ("sft", "imagine")
    else:
        name, numbers, arms = "texts", options.captions, ("imagine",)
    return [(number, "imagine", [f"{name}={number}", *_UNMEASURED], arms) for number in numbers]


def _jobs(
    options: argparse.Namespace,
    weights: str,
    curve: str,
    preset: str,
    changes: list[str],
    arms: Sequence[str],
) -> dict[str, list[Job]]:
    settings = evidence_presets.settle(
        evidence_presets.preset(preset, [*changes, *options.set]), weights
    )
    output = options.output / f"{preset}-{settings.sha256()[:12]}"
    evidence.begin(output, settings)
    return {
        arm: [Job(output, options.model, settings, arm, seed, SPLIT) for seed in options.seeds]
        for arm in arms
    }


def _measured(arms: Mapping[str, Sequence[Job]]) -> dict[str, Any]:
    """``{metric: {arm: [one value a seed]}}``."""
    return {
        metric: {arm: [job.figures()[metric] for job in jobs] for arm, jobs in arms.items()}
        for metric in MEASURED
    }


def _rounds(arms: Mapping[str, Sequence[Job]]) -> dict[str, Any]:
    """Of each round: the step of its log, and the mean over seeds of each figure.

    None where no seed has it: nothing was confirmed, so there is no precision.
    """
    logs = [
        json.loads((job.folder / "trained.json").read_text("utf-8"))["log"]
        for job in arms["verify"]
    ]
    rounds = [[entry for entry in log if "verify_kept" in entry] for log in logs]
    return {
        "step": [entry["step"] for entry in rounds[0]],
        **{
            name: [_mean(entries, f"verify_{name}") for entries in zip(*rounds, strict=True)]
            for name in OF_ROUNDS
        },
        "t2i_exact": [job.figures()["t2i_exact"] for job in arms["verify"]],
    }


def _mean(entries: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [entry[name] for entry in entries if name in entry]
    return round(statistics.mean(values), 4) if values else None


def draw(found: Mapping[str, Any], file: Path) -> None:
    """A picture: a column for each curve, seeds as dots, their mean as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from unigame.reports.style import RC, save

    curves = [curve for curve in CURVES if curve in found]
    with pyplot.rc_context(RC):
        figure, axes = pyplot.subplots(
            1, len(curves), figsize=(3.8 * len(curves), 4.0), squeeze=False, layout="constrained"
        )
        for axis, curve in zip(axes[0], curves, strict=True):
            if curve == "rounds":
                _draw_rounds(axis, next(iter(found[curve].values())))
            else:
                _draw_points(axis, found[curve], curve)
            axis.set_ylim(0, 100)
            axis.legend(loc="upper left", bbox_to_anchor=(0, -0.22))  # below: lines fill the panel
        axes[0][0].set_ylabel("%")
        save(figure, file)
        pyplot.close(figure)


_NAMES = {
    ("new_task", "sft"): "new task, fine-tuning alone",
    ("new_task", "imagine"): "new task, imagined scenes beside",
    ("old_tasks", "sft"): "old tasks, fine-tuning alone",
    ("old_tasks", "imagine"): "old tasks, imagined scenes beside",
}


def _draw_points(axis: Any, points: Mapping[str, Any], curve: str) -> None:
    from unigame.reports.style import ADVERSARIAL, CLEAN

    colours = {"sft": CLEAN, "imagine": ADVERSARIAL}
    numbers = [int(number) for number in points]
    for (metric, arm), label in _NAMES.items():
        series = [point[metric].get(arm) for point in points.values()]
        if any(values is None for values in series):
            continue
        dashes = "-" if metric == "new_task" else ":"
        means = [statistics.mean(values) for values in series]
        axis.plot(numbers, means, dashes, color=colours[arm], label=label, marker="o", markersize=3)
        for number, values in zip(numbers, series, strict=True):
            axis.scatter([number] * len(values), values, s=9, color=colours[arm], alpha=0.5)
    axis.set_xscale("log")
    axis.set_xticks(numbers, [str(number) for number in numbers])
    axis.minorticks_off()
    of = {"scenes": "labelled scenes of the new task", "captions": "captions to imagine"}
    axis.set_title("imagine: G teaches U")
    axis.set_xlabel(of[curve])


def _draw_rounds(axis: Any, rounds: Mapping[str, Any]) -> None:
    from unigame.reports.style import ADVERSARIAL, CLEAN, HARD, MUTED, RIGHT

    series = {
        "true": ("drawings that are right", RIGHT),
        "kept": ("drawings that U confirms", CLEAN),
        "precision": ("of these, right", MUTED),
        "variety": ("codes in which two of a caption differ", ADVERSARIAL),
        "round_codes_used": ("codes used", HARD),
    }
    for name, (label, colour) in series.items():
        values = [math.nan if value is None else 100 * value for value in rounds[name]]
        axis.plot(rounds["step"], values, color=colour, label=label)
    axis.set_title("verify: U teaches G")
    axis.set_xlabel("step")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"teaching_curves.py: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped; finished runs are kept, and the same command goes on.")
