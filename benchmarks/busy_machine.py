"""What a busy core beside it costs a training step: torch's own way to wait, and the CLI's.

With two threads on two cores, a third busy process should cost a step about its share: a third of
the machine, or half where a part of the step waits for the slower thread. Threads that spin while
they wait turn that into a factor of ten and more (``unigame/system/threads.py`` says why).

Usage:
    python benchmarks/busy_machine.py --json FILE [--seconds 8] [--busy 1]

Each way runs in a process of its own, since OpenMP reads its settings once: fine-tuning steps of
the bundled model, alone and beside ``--busy`` processes that do nothing but count, in turns.
``ratio`` is seconds a step beside them over seconds alone (medians), by way; ``alone`` is ours over
torch's without them. Where the machine has other work too, "alone" is not, and torch's ratio comes
out too small.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import meters
import record
import step_cost
import torch
from models import ROOT, build

from unigame.system.threads import WAITING

BUSY = "while True: pass"
ROUNDS = 2
KIND = "sft"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON file."""
    options = parse_arguments(argv)
    if options.worker:
        found = measure(options)
        print(json.dumps(found))
        return found
    ways = {"torch": {}, "unigame": settings_of_the_command_line()}
    seconds = {way: run_worker(options, chosen) for way, chosen in ways.items()}
    figures = {
        "ratio": {
            way: round(statistics.median(s["busy"]) / statistics.median(s["alone"]), 2)
            for way, s in seconds.items()
        },
        "alone": round(
            statistics.median(seconds["unigame"]["alone"])
            / statistics.median(seconds["torch"]["alone"]),
            2,
        ),
        "seconds": {
            way: record.rounded({name: statistics.median(s[name]) for name in ("alone", "busy")})
            for way, s in seconds.items()
        },
        "steps": {way: {name: len(s[name]) for name in s} for way, s in seconds.items()},
    }
    settings = {name: getattr(options, name) for name in ("model", "batch_size", "seconds", "busy")}
    found = record.write(figures, settings | {"ways": ways}, options.json)
    for way, ratio in found["ratio"].items():
        print(f"{way:8} {ratio:.2f} x as long beside {options.busy} busy process(es)")
    return found


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--model", default="janus-nano", help="a checkpoint, or a random shape")
    parser.add_argument("--batch-size", type=int, default=8, help="clean samples")
    parser.add_argument("--seconds", type=float, default=8.0, help="of steps, alone and beside")
    parser.add_argument("--busy", type=int, default=1, help="processes that only count")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def settings_of_the_command_line() -> dict[str, str]:
    """What ``unigame`` sets where the user has set nothing."""
    program = (
        "import json; from unigame.system.threads import share_cores; "
        "found = {}; share_cores(found); print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return dict(json.loads(done.stdout))


def run_worker(options: argparse.Namespace, chosen: dict[str, str]) -> dict[str, list[float]]:
    """Seconds of every step in a fresh process with these settings and no others."""
    names = (*WAITING, "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    words = ["--model", options.model, "--batch-size", str(options.batch_size)]
    words += ["--seconds", str(options.seconds), "--busy", str(options.busy), "--worker"]
    done = subprocess.run(
        [sys.executable, __file__, *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | chosen,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of fine-tuning steps alone and beside busy processes, in turns."""
    words = ["--model", options.model, "--batch-size", str(options.batch_size), "--cpu"]
    backbone = build(options.model, torch.device("cpu"), torch.float32)
    found: dict[str, list[float]] = {"alone": [], "busy": []}
    with tempfile.TemporaryDirectory() as folder:
        bench = step_cost.Bench(backbone, step_cost.parse_arguments(words), Path(folder))
        bench.step(KIND)
        for _ in range(ROUNDS):
            found["alone"] += steps_for(options.seconds / ROUNDS, bench)
            others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(options.busy)]
            try:
                found["busy"] += steps_for(options.seconds / ROUNDS, bench)
            finally:
                for other in others:
                    other.kill()
                    other.wait()
    return found


def steps_for(seconds: float, bench: step_cost.Bench) -> list[float]:
    """Seconds of each step, for about so long, one step at least."""
    found: list[float] = []
    while sum(found) < seconds:
        found.append(meters.seconds(lambda: bench.step(KIND), bench.device))
    return found


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
