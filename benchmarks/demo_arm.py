"""An arm of the demo with other settings, on a seed that the demo does not show: for tuning.

    python benchmarks/demo_arm.py reca --set learning_rate=1e-4 max_steps=150
    python benchmarks/demo_arm.py imagine --method rows=32 rehearsal=0.25

``--set`` changes the training settings of the arm's recipe, ``--method`` those of the method that
is its own. Prints the headline of each benchmark, in the benchmark's unit; no attack is made. The
seed is of data, training and questions: 100, and the demo has 0.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import datasets
import record
import yaml
from transformers import set_seed

from unigame.backbones import load_backbone
from unigame.demo import run as demo
from unigame.demo.arms import ARMS, METHODS, Sizes, changes, write_texts
from unigame.demo.kinds import kind_of
from unigame.errors import UserError
from unigame.evaluation.miniature import world_benchmarks, write_world
from unigame.evaluation.run import evaluate
from unigame.training.recipe import load_recipe

ANSWERS, DRAWINGS, OOD = 240, 96, 480


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("--model", default="janus-nano")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--captions", type=int, default=Sizes().captions, help="for methods")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--method", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="file to write")
    return parser.parse_args(argv)


def pairs(words: list[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts; values as a recipe has them.

    Raises:
        UserError: one without an equals sign.
    """
    for word in words:
        if "=" not in word:
            raise UserError(f"{word}: write KEY=VALUE, such as learning_rate=1e-4")
    return {key: yaml.safe_load(value) for key, _, value in (w.partition("=") for w in words)}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train and measure the arm; returns the record that is printed."""
    options = parse_arguments(argv)
    if options.arm == "base" and (options.set or options.method):
        raise UserError("--set and --method: arm base is not trained; name another arm")
    datasets.disable_progress_bars()
    kind = kind_of(options.model)
    recipe = load_recipe(kind.recipe, ["--model", options.model, "--seed", str(options.seed)])
    own: dict[str, Any] = {}
    if options.arm != "base":
        own = {**changes(recipe, options.arm, False, kind.latents), **pairs(options.set)}
    if options.method and options.arm not in METHODS:
        raise UserError(f"--method: arm {options.arm} has no method of its own; use --set")
    if options.arm in METHODS:
        own["methods"] = {options.arm: {**own["methods"][options.arm], **pairs(options.method)}}
    config = {"recipe": kind.recipe, "seed": options.seed, "arms": {options.arm: own}}
    with TemporaryDirectory() as folder:
        output = Path(folder)
        sources = write_world(
            output / "data", answers=ANSWERS, drawings=DRAWINGS, ood=OOD, seed=options.seed
        )
        write_texts(output / demo.DATA, options.captions, options.seed)
        set_seed(options.seed)
        backbone, start = load_backbone(options.model, dtype="float32"), time.process_time()
        if options.arm != "base":
            job = demo.Job(options.arm, output, recipe, config, sources)
            demo.trainer_of(backbone, output / "arm", job, lambda *_: None).train()
        seconds = time.process_time() - start
        found = evaluate(
            backbone,
            world_benchmarks(backbone),
            sources=sources,
            output=output / "record",
            drawing=replace(kind.drawing, seed=options.seed),
        )
    figures = {
        name: round(next(iter(entry["metrics"].values()))["value"], 3)
        for name, entry in found["benchmarks"].items()
    }
    return record.write(
        {"arm": options.arm, "headlines": figures, "training_cpu_seconds": round(seconds, 1)},
        {**own, "seed": options.seed, "captions": options.captions},
        options.json,
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"demo_arm.py: {error}")
