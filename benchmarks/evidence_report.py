"""What the seeds of ``evidence.py`` say: differences with intervals, a table, a figure, a verdict.

    python benchmarks/evidence_report.py RESULT.json [RESULT.json ...] [--figure FILE.png]
    python benchmarks/evidence_report.py RESULT.json --against ARM   # or none: the means

Results of the same settings, kept by runs of other seeds or arms, are pooled: ``--json`` keeps them
as one.

The seed is the unit: a difference is taken within each seed, and its 95 % interval is Student's t
over seeds. An interval over the questions of one run is no evidence of a method: it leaves out what
another seed of data, LoRA and C would have given.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import evidence_picture
from evidence_statistics import (
    CONTROL,
    Metrics,
    difference,
    differences,
    fewer,
    interval,
    known,
)

from unigame.errors import UserError

SEEDS, POINTS = 8, 2.0
"""What the claim "the game wins" asks for: so many seeds, so many points over each control."""
IN_SPAN = tuple(f"ood/{name}" for name in ("texture", "noise", "contrast", "occlusion", "blur"))
OUT_OF_SPAN = ("ood/combos",)
"""Conditions that a style of the bundled recipes names, and those that none names."""
MANY = 12  # arms, above which the table has a row for each
GOALS = (
    *(("t2i_exact", "verify", "sft", 10.0), ("t2i_exact", "verify", "real_pairs", 0.0)),
    *(("t2i_exact", "verify", "unverified", 0.0), ("t2i_exact", "verify", "oracle", -2.0)),
    *(("new_task", "imagine", "sft", 0.0), ("new_task", "imagine", "unverified", 0.0)),
    *(("old_tasks", "imagine", "base", -2.0), ("old_tasks", "imagine", "no_rehearsal", 0.0)),
    *(("score", "verify", "sft", 4.0), ("score", "imagine", "sft", 4.0)),
    *(("score", "reca", "sft", 4.0), ("score", "all", "sft", 4.0)),
    *(("new_task", "all", "imagine", 0.0), ("old_tasks", "all", "base", -2.0)),
    *(("t2i_exact", "all", "verify", 0.0), ("old_tasks", "all", "imagine", -2.0)),
    *(("new_task_ood", "restyled", other, 0.0) for other in ("imagine", "more", "beside")),
    *(("new_task", "restyled", other, 0.0) for other in ("imagine", "more", "beside")),
    ("old_tasks", "restyled", "imagine", -2.0),
)
"""What the methods beside the game are for: metric, arm, another arm, by how many points more."""
FORGOTTEN = ("t2i_exact", "score")
"""What fine-tuning on a new task alone forgets, so that any arm is far above it."""
OF_ONE_METHOD = ("unverified", "oracle", "no_rehearsal")
"""Controls of the method that the preset is about: where ``imagine`` is an arm, of ``imagine``."""
OF_REAL_SCENES = 90.0
"""Percent of what real scenes of the new task give that imagined ones are to give."""


def table(result: Mapping[str, Any], control: str = CONTROL) -> list[str]:
    """Markdown: the mean of a control, and every other arm less it, with its interval.

    A row for each metric; of many arms, a row for each arm. Of a control that is no arm: all means.
    """
    metrics: Metrics = result["metrics"]
    arms = list(next(iter(metrics.values())))
    others = [arm for arm in arms if arm != control]
    seeds = result["seeds"]
    named = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    if control not in arms:
        titles = [arm + fewer(result, arm) for arm in arms]
        lines = [f"| %, {named} | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(arms)]
        for metric, values in metrics.items():
            means = [_number(interval(known(values[arm]))["mean"], "") for arm in arms]
            lines.append(f"| {metric} | " + " | ".join(means) + " |")
        return lines
    # Results that were pooled may lack arms of some seeds.
    titles = [f"{arm} - {control}{fewer(result, arm)}" for arm in others]
    lines = [f"| %, {named} | {control}{fewer(result, control)} | " + " | ".join(titles) + " |"]
    lines.append("|---|" + "---:|" * (len(titles) + 1))
    for metric, values in metrics.items():
        mean = _number(interval(known(values[control]))["mean"], "")
        cells = [_cell(difference(values, arm, control)) for arm in others]
        # A seed may have an arm and lack this figure of it.
        pairs = zip(cells, others, strict=True)
        cells = [cell + fewer(result, arm, metric, control) for cell, arm in pairs]
        lines.append(f"| {metric} | {mean} | " + " | ".join(cells) + " |")
    return _turned(lines) if len(arms) > MANY else lines


def _turned(lines: Sequence[str]) -> list[str]:
    """A Markdown table with its rows as columns."""
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    turned = ["| " + " | ".join(cells) + " |" for cells in zip(head, *rows, strict=True)]
    return [turned[0], "|---|" + "---:|" * len(rows), *turned[1:]]


def _number(value: float | None, sign: str = "+") -> str:
    return "" if value is None else f"{value:{sign}.1f}"


def _cell(found: Mapping[str, float | None]) -> str:
    mean, low, high = (_number(found[key]) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if low else mean


def verdict(metrics: Metrics, player: str = "selfplay") -> list[str]:
    """In sentences: does the game beat its controls, does it harm anything, what share is won?"""
    if player not in metrics.get("ood", {}):
        return []
    seeds = len(known(metrics["ood"][player]))
    lines = []
    for control in (CONTROL, "sft_equal", "round_trip", "random", "uniform"):
        if control in metrics["ood"]:
            own = len(known(metrics["ood"][control]))
            told = _against(difference(metrics["ood"], player, control), player, control)
            lines.append(told if own >= seeds else f"{told[:-1]} ({own} seeds).")
    if seeds < SEEDS:
        lines.append(f"{seeds} of the {SEEDS} seeds that the claim asks for.")
    if CONTROL not in metrics["ood"] or difference(metrics["ood"], player, CONTROL)["low"] is None:
        return lines  # of one seed nothing can be said
    for title, names in (("in", IN_SPAN), ("out of", OUT_OF_SPAN)):
        if all(name in metrics for name in names):
            found = difference(_joined(metrics, names), player, CONTROL)
            short = ", ".join(name.removeprefix("ood/") for name in names)
            lines.append(f"Conditions {title} the span of styles ({short}): {_cell(found)}.")
    worst = [
        f"{metric} ({_cell(found)})"
        for metric, arms in metrics.items()
        if (metric == "id" or metric.startswith("ood/"))
        and ((low := (found := difference(arms, player, CONTROL))["low"]) is None or low < -1)
    ]
    harmed = ", ".join(worst) if worst else "none"
    lines.append(f"Where a loss of more than 1 point to {CONTROL} is not ruled out: {harmed}.")
    if "augmented" in metrics["ood"]:
        lines.append(_share_won(metrics, player))
    return lines


def goals(metrics: Metrics) -> list[str]:
    """In sentences: what the methods of verified drawings reach of what they are for."""
    lines = []
    for metric, arm, other, least in GOALS:
        arms = metrics.get(metric, {})
        if (
            arm in arms
            and other in arms
            and not (arm == "verify" and other in OF_ONE_METHOD and "imagine" in arms)
        ):
            found = difference(arms, arm, other)
            said = _reached(found, least)
            if other == CONTROL and metric in FORGOTTEN and "new_task" in metrics:
                said = f"no goal here: {CONTROL} on a new task forgets it"
            lines.append(f"{metric}, {arm} - {other}: {_cell(found)}; {said}.")
    arms = metrics.get("new_task", {})
    if "imagine" in arms and "real_scenes" in arms:
        pairs = zip(arms["imagine"], arms["real_scenes"], strict=True)
        found = interval([100 * a / b for a, b in pairs if a is not None and b])
        said = _reached(found, OF_REAL_SCENES)
        lines.append(f"new_task, imagine in % of real_scenes: {_cell(found)}; {said}.")
    for arm in ("verify", "imagine", "all", "restyled"):
        if lines and any(arm in arms for arms in metrics.values()):
            lines.append(_worse(metrics, arm))
    return lines


def _worse(metrics: Metrics, arm: str) -> str:
    """What an arm measurably loses: to fine-tuning, or to the base where a new task is trained.

    Fine-tuning on a new task forgets what the others measure, so to it nothing would be lost.
    """
    control = "base" if "new_task" in metrics and "base" in metrics["new_task"] else CONTROL
    lost = []
    for metric, arms in metrics.items():
        if arm not in arms or control not in arms:
            continue
        found = difference(arms, arm, control)
        if found["high"] is not None and found["high"] < 0:
            lost.append(f"{metric} ({_cell(found)})")
    return f"{arm}, measurably below {control}: {', '.join(lost) or 'nothing'}."


def _reached(found: Mapping[str, float | None], least: float) -> str:
    """Whether a mean is at the goal, and the whole interval."""
    mean, low = found["mean"], found["low"]
    if mean is None:
        return "not measured"
    sure = low is not None and low >= least
    said = "surely" if sure else "in the mean" if mean >= least else "not"
    return f"the goal of {least:+g} is {said} reached"


def _against(found: Mapping[str, float | None], player: str, control: str) -> str:
    mean, low = found["mean"], found["low"]
    if mean is None or low is None:
        said = "one seed is no evidence"
    else:
        said = "above 0" if low > 0 else "not shown to be above 0"
        said += f", {'at least' if mean >= POINTS else 'less than'} {POINTS:g} points"
    return f"OOD, {player} - {control}: {_cell(found)}, {said}."


def _joined(metrics: Metrics, names: Sequence[str]) -> dict[str, list[float | None]]:
    """The mean of several conditions, of every arm and seed."""
    joined: dict[str, list[float | None]] = {}
    for arm in metrics[names[0]]:
        of_seeds = zip(*(metrics[name][arm] for name in names), strict=True)
        joined[arm] = [
            None if None in values else statistics.mean(known(values)) for values in of_seeds
        ]
    return joined


def _share_won(metrics: Metrics, player: str) -> str:
    """Conditions of a gain that is no chance, of the game and of real pictures."""
    won = []
    for metric, arms in metrics.items():
        if not metric.startswith("ood/"):
            continue
        gain, real = (difference(arms, arm, CONTROL) for arm in (player, "augmented"))
        sure = (gain["low"] or 0) > 0 and (real["low"] or 0) > 0
        if sure and (gain["mean"] or 0) >= (real["mean"] or 0) / 2:
            won.append(metric.removeprefix("ood/"))
    return (
        "Conditions with half of what real augmentation gains, both above 0: "
        f"{', '.join(won) or 'none'}."
    )


def pool(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several results of the same settings as one, by seed; what none of them measured is None.

    Raises:
        UserError: they are of other settings or splits, or two of them have the same arm and seed.
    """
    first = results[0]
    seeds = sorted({seed for result in results for seed in result["seeds"]})
    metrics: dict[str, dict[str, list[float | None]]] = {}
    for result in results:
        if result["settings_sha256"] != first["settings_sha256"]:
            raise UserError(
                f"results of other settings ({first['settings_sha256'][:8]}..., "
                f"{result['settings_sha256'][:8]}...) are no one experiment; show each alone"
            )
        if split_of(result) != split_of(first):
            raise UserError(
                f"a result of split {split_of(result)} beside one of {split_of(first)}; show each "
                "alone"
            )
        for metric, arms in result["metrics"].items():
            for arm, values in arms.items():
                places = metrics.setdefault(metric, {}).setdefault(arm, [None] * len(seeds))
                for seed, value in zip(result["seeds"], values, strict=True):
                    if value is None:
                        continue
                    if places[seeds.index(seed)] is not None:
                        raise UserError(
                            f"seed {seed}, {arm}: more than one result has it; leave one out"
                        )
                    places[seeds.index(seed)] = value
    rows = _rows_of_all(results, seeds)
    code = sorted({text for result in results for text in result["machine"].get("code", [])})
    return {
        **first,
        "seeds": seeds,
        "metrics": metrics,
        "differences": differences(metrics),
        **({"hard_rows": rows} if rows else {}),
        "command": " && ".join(result["command"] for result in results),
        "machine": {**first["machine"], "code": code},  # of the first result; its code, of all
    }


def _rows_of_all(
    results: Sequence[Mapping[str, Any]], seeds: Sequence[int]
) -> dict[str, list[float | None]]:
    """Hard rows a step of every arm and seed; results that were kept before they were have none."""
    rows: dict[str, list[float | None]] = {}
    for result in results:
        for arm, values in result.get("hard_rows", {}).items():
            places = rows.setdefault(arm, [None] * len(seeds))
            for seed, value in zip(result["seeds"], values, strict=True):
                places[seeds.index(seed)] = value
    return rows


def split_of(result: Mapping[str, Any]) -> str:
    """The split that a result is of, as its command says; "unsaid" where it does not."""
    words = shlex.split(result["command"])
    return words[words.index("--split") + 1] if "--split" in words else "unsaid"


def show(result: Mapping[str, Any], metrics: Sequence[str] = (), control: str = CONTROL) -> str:
    """The table, of these metrics or all, and the verdict on all of them, as Markdown."""
    whole: Metrics = result["metrics"]
    lines = table(only(result, metrics) if metrics else result, control)
    return "\n".join([*lines, "", *verdict(whole), *goals(whole), *rows_line(result)])


def rows_line(result: Mapping[str, Any]) -> list[str]:
    """How many hard rows U learned from in a step, in the mean over seeds that tell."""
    told = [
        f"{arm} {statistics.mean(known(rows)):.1f}"
        for arm, rows in result.get("hard_rows", {}).items()
    ]
    return [f"Hard rows a step: {', '.join(told)}."] if told else []


def only(result: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A result with these metrics.

    Raises:
        UserError: one was not measured.
    """
    if missing := set(names) - set(result["metrics"]):
        known = ", ".join(result["metrics"])
        raise UserError(f"--metrics {min(missing)}: not measured; there are {known}")
    return {**result, "metrics": {name: result["metrics"][name] for name in names}}


def main() -> None:
    """Table and figure of results that are there already."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "results", type=Path, nargs="+", help="what `evidence.py --json` wrote; several are pooled"
    )
    parser.add_argument("--json", type=Path, help="file to write: all of them as one result")
    parser.add_argument("--figure", type=Path, help="picture to write")
    parser.add_argument("--metrics", nargs="+", help="only these in table and figure")
    parser.add_argument(
        "--against",
        default=CONTROL,
        metavar="ARM",
        help="arm that the table compares with; none: the means of all. Default: %(default)s",
    )
    options = parser.parse_args()
    result = pool([json.loads(file.read_text(encoding="utf-8")) for file in options.results])
    arms = next(iter(result["metrics"].values()))
    if options.against not in (*arms, CONTROL, "none"):
        raise UserError(f"--against {options.against}: no arm; there are {', '.join(arms)}")
    print(show(result, options.metrics or (), options.against))
    if len(code := result["machine"].get("code", [])) > 1:
        print(f"Arms of different code: {'; '.join(code)}.")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.figure:
        evidence_picture.draw(
            only(result, options.metrics) if options.metrics else result, options.figure
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"evidence_report.py: {error}")
