"""The protocol: does the game beat its controls, over seeds, on questions that nobody tuned on?

    python benchmarks/evidence.py --preset demo --seeds 0 1 2 --json result.json --figure result.png

Every arm takes the same steps of U on the same rows, from the same weights and LoRA initialisation;
what a method adds, it adds in as many rows. Every seed has its own training data, LoRA, C, and
questions. Presets: ``evidence_presets.yaml``. What it measures: ``evidence_measure.py``.

Settings are tuned on the validation split. The hash of all of them, and of the model's weights,
stands in the record. The test split is measured only for settings whose hash is given by
``--frozen``, or written as ``frozen:`` in the preset, where it is then the default: nobody tunes on
it by accident.

A finished arm of a seed is never done again: a stopped command goes on where it was. Each arm is
one thread; ``--workers 2`` does two at a time. Two commands on one ``--output`` need other seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, and in the workers too
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import evidence_arms
import evidence_measure
import evidence_picture
import evidence_presets
import evidence_report
import evidence_statistics
import record
from evidence_arms import Job
from evidence_measure import SPLITS_OF
from evidence_presets import Settings
from rich.console import Console

from unigame.backbones import load_backbone
from unigame.bundled import BUNDLED
from unigame.errors import UserError
from unigame.system.console import make_console
from unigame.system.progress import progress_on
from unigame.system.workers import run_all


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", required=True, help="of evidence_presets.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument(
        "--model", help="bundled name or folder [default: the preset's, or janus-nano]"
    )
    parser.add_argument("--split", choices=tuple(SPLITS_OF))
    parser.add_argument("--frozen", metavar="SHA", help="the settings' hash; the test split asks")
    parser.add_argument("--arms", nargs="+", help="only these of the preset's arms")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the preset"
    )
    parser.add_argument("--workers", type=int, default=2, help="arms at a time, one thread each")
    parser.add_argument("--output", type=Path, help="default: runs/evidence/PRESET-HASH")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--figure", type=Path, help="picture to write")
    options = parser.parse_args(argv)
    if len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--seeds {' '.join(map(str, options.seeds))}: give each seed once")
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: give 1 at least")
    return options


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Do what is not done yet, print the table, write the files.

    Raises:
        UserError: settings, model or split that cannot be used, before anything is trained.
    """
    options, console = parse_arguments(argv), make_console()
    found = evidence_presets.preset(options.preset, options.set)
    evidence_presets.settle(found)  # faults of the settings, before the weights
    options.model = options.model or found.get("model", BUNDLED)
    weights = load_backbone(options.model, dtype="float32").weights_digest()
    settings = evidence_presets.settle(found, weights)
    sha256 = settings.sha256()
    split = choose_split(options.split, options.frozen, found.get("frozen"), sha256)
    if split == "validation" and options.split is None and found.get("frozen"):
        console.print(
            f"preset {options.preset} was frozen as {found['frozen'][:8]}...; these settings or "
            f"weights are {sha256[:8]}..., so the validation split is measured",
            style="bold",
        )
    arms = choose_arms(options.arms, settings)
    if options.figure and evidence_statistics.CONTROL not in arms:
        raise UserError("--figure shows differences to arm sft; add it to --arms")
    output = options.output or Path("runs/evidence") / f"{options.preset}-{sha256[:8]}"
    begin(output, settings)
    console.print(f"settings {sha256}, split {split}, in {output}/", style="dim")
    jobs = [
        Job(output, options.model, settings, arm, seed, split)
        for seed in options.seeds
        for arm in arms
    ]
    run([job for job in jobs if not job.result.exists()], len(jobs), options.workers, console)
    result = {
        "preset": options.preset,
        "seeds": options.seeds,
        "metrics": (metrics := collect(jobs)),
        "differences": evidence_statistics.differences(metrics),
        "hard_rows": hard_rows(jobs),
        "settings_sha256": sha256,
        "command": command(options, split),
        "machine": {**record.machine()["machine"], "code": code_of(jobs, console)},
    }
    write(result, output, options, console)
    return result


def choose_split(asked: str | None, given: str | None, frozen: str | None, sha256: str) -> str:
    """Validation, or the test split for settings that were frozen.

    Args:
        asked: on the command line.
        given: a hash on the command line.
        frozen: the preset's.
        sha256: of the settings as they are.

    Raises:
        UserError: the test split is asked for, and the settings are not the frozen ones.
    """
    if given not in (None, sha256):
        raise UserError(
            f"--frozen {given}: the settings' hash is {sha256}, so they are not the frozen ones; "
            "measure on --split validation, or take the settings that were frozen"
        )
    is_frozen = sha256 in (given, frozen)
    if asked == "test" and not is_frozen:
        raise UserError(
            f"--split test needs frozen settings: tune on --split validation, then add --frozen "
            f"{sha256}, the hash of these"
        )
    return asked or ("test" if is_frozen else "validation")


def choose_arms(asked: list[str] | None, settings: Settings) -> list[str]:
    """Those asked for, in the preset's order.

    Raises:
        UserError: one that the preset lacks.
    """
    for arm in asked or ():
        if arm not in settings.arms:
            raise UserError(f"--arms {arm}: the preset has {', '.join(settings.arms)}")
    return [arm for arm in settings.arms if asked is None or arm in asked]


def begin(output: Path, settings: Settings) -> None:
    """Make the folder, or see that it is of these settings.

    Raises:
        UserError: it holds runs of other ones.
    """
    file = output / "settings.json"
    if file.exists() and file.read_text(encoding="utf-8") != settings.text():
        raise UserError(f"{output} holds runs of other settings; name another --output folder")
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(settings.text(), encoding="utf-8")


def collect(jobs: list[Job]) -> dict[str, dict[str, list[float | None]]]:
    """``{metric: {arm: [one value a seed]}}``, of the metrics that are measured."""
    figures = {(job.arm, job.seed): job.figures() for job in jobs}
    arms = list(dict.fromkeys(job.arm for job in jobs))
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    return {
        metric: {arm: [figures[arm, seed][metric] for seed in seeds] for arm in arms}
        for metric in evidence_measure.metrics_of(jobs[0].settings)
    }


def code_of(jobs: list[Job], console: Console) -> list[str]:
    """The code that the arms were trained and measured by; more than one is said.

    A finished arm is not done again, so that a folder may hold arms of different code: their
    differences are then partly those of the code.
    """
    found = sorted({code for job in jobs for code in job.code()})
    if len(found) > 1:
        console.print(f"arms of different code: {'; '.join(found)}", style="bold")
    return found


def hard_rows(jobs: list[Job]) -> dict[str, list[float | None]]:
    """``{arm: [hard rows that U learned from in a step, of each seed]}``, of arms that mine any."""
    found: dict[str, list[float | None]] = {}
    for job in jobs:
        found.setdefault(job.arm, []).append(job.hard_rows())
    return {arm: rows for arm, rows in found.items() if any(row is not None for row in rows)}


def command(options: argparse.Namespace, split: str) -> str:
    """What repeats this run, its split said."""
    words = ["python", "benchmarks/evidence.py", "--preset", options.preset, "--seeds"]
    words += [*map(str, options.seeds), "--model", options.model, "--split", split]
    if options.frozen:
        words += ["--frozen", options.frozen]
    for name, values in (("--arms", options.arms), ("--set", options.set)):
        words += [name, *values] if values else []
    return shlex.join(words)


def write(
    result: dict[str, Any], output: Path, options: argparse.Namespace, console: Console
) -> None:
    """The table on the terminal and in the folder, the result and the figure where asked for.

    Beside the result stand the settings that its hash is of: a preset may change later.
    """
    shown = evidence_report.show(result)
    console.print("\n" + shown)
    (output / "table.md").write_text(shown + "\n", encoding="utf-8")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        beside = options.json.with_name(f"{options.json.stem}-settings.json")
        shutil.copyfile(output / "settings.json", beside)
    if options.figure:
        evidence_picture.draw(result, options.figure)


def run(jobs: list[Job], in_all: int, workers: int, console: Console) -> None:
    """Do the jobs, so many at a time, and show how far they are."""
    with progress_on(console) as progress:
        overall = progress.add_task("arms and seeds", total=in_all)
        progress.update(overall, completed=in_all - len(jobs))
        named = [(f"seed {job.seed}, {job.arm}", job) for job in jobs]
        run_all(named, evidence_arms.do, workers, progress, lambda: progress.advance(overall))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"evidence.py: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped; finished arms are kept, and the same command goes on.")
