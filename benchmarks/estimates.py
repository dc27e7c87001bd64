"""How far ``unigame doctor --recipe`` is off: its estimates of memory and time against real steps.

Two models: the bundled one, which doctor tries whole, and a random Janus of Janus-Pro's
proportions, which it puts together from slices. What is measured are the steps of the whole model.

Usage:
    python benchmarks/estimates.py --json FILE [--models janus-nano janus_pro_small]

``worst`` is the largest relative error of all four figures: 0.25 means 25 % off.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import meters
import record
import torch
from models import build
from step_cost import Bench
from step_cost import parse_arguments as step_arguments

from unigame.doctor.peak import tensor_bytes
from unigame.doctor.trial import sample_rows, try_recipe
from unigame.training.recipe import Recipe


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--models", nargs="+", default=["janus-nano", "janus_pro_small"])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[16, 4])
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args(argv)
    pairs = zip(options.models, options.batch_size, strict=True)
    models = {name: compare(name, batch, options.repetitions) for name, batch in pairs}
    errors = [figures[kind]["error"] for figures in models.values() for kind in figures]
    figures = {"worst": max(abs(error) for error in errors), "models": models}
    found = record.write(figures, {"repetitions": options.repetitions}, options.json)
    print(f"at worst {found['worst']:.0%} off")
    return found


def compare(name: str, batch_size: int, repetitions: int) -> dict[str, Any]:
    """Estimates and measurements of one model's steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = build(name, device, torch.float32)
    config = copy.deepcopy(backbone.janus.config)
    words = ["--model", name, "--batch-size", str(batch_size), "--kinds", "sft", "unigame"]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(backbone, step_arguments(words), Path(folder))
        data = [{"type": "synthetic", "size": 64}]
        methods = {"selfplay": bench.game.as_dict()}
        plan = Recipe(model=name, training=bench.args, data=data, dtype="float32", methods=methods)
        bench.batch = bench.trainer.data_collator(sample_rows(plan)[0])
        found = try_recipe(plan, config, backbone.facts.num_parameters)
        bench.fill_buffer()
        times = [meters.seconds(lambda: bench.step("unigame"), device) for _ in range(repetitions)]
        trainer = bench.trainer
        assert trainer.optimizer and bench.game.optimizer
        alive = tensor_bytes(backbone, trainer.optimizer, bench.game.optimizer)
        peak = alive + bench.peak(lambda: bench.step("unigame"))
    return {
        "seconds": errors(found.seconds, statistics.median(times)),
        "megabytes": errors(found.memory / 1e6, peak / 1e6),
    }


def errors(expected: float, measured: float) -> dict[str, float]:
    """Both figures, and by how much of the measured one the estimate is off."""
    return record.rounded(
        {"estimated": expected, "measured": measured, "error": expected / measured - 1}
    )


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
