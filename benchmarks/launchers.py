"""``torchrun`` and ``accelerate launch`` as they are installed: a run on CPUs, and a rank killed.

    python benchmarks/launchers.py runs/launchers --json FILE

With each launcher the game of ``kill_ranks.py`` is trained on two processes: once unbroken; once
until a checkpoint is there, when rank 1 is killed by ``kill -9``; and then on, by the same command.
Seconds until the launcher itself has ended, the lines that our command said, and whether all runs
of both launchers ended in the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import accelerate
from kill_ranks import ended_with, make_recipe
from record import write

STEPS = 8
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"],
    # Not --cpu: with it accelerate starts one process, unless it is given MPI hosts.
    "accelerate launch": ["-m", "accelerate.commands.launch", "--multi_gpu"],
}
LAUNCHERS["torchrun"] += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
LAUNCHERS["accelerate launch"] += ["--num_processes", "2", "--num_machines", "1"]
LAUNCHERS["accelerate launch"] += ["--mixed_precision", "no"]
LAUNCHERS["accelerate launch"] += ["--dynamo_backend", "no", "--main_process_port", "0"]


def start(name: str, recipe: Path, output: Path) -> subprocess.Popen[bytes]:
    """``unigame train`` under a launcher; its words go into a file beside ``output``."""
    words = ["train", str(recipe), "--output_dir", str(output)]
    words += ["--resume_from_checkpoint", "auto"]
    module = ["--module"] if name.startswith("accelerate") else ["-m"]
    with output.with_suffix(".txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, *LAUNCHERS[name], *module, "unigame.cli", *words],
            stdout=said,
            stderr=said,
        )


def rank_one(launcher: int) -> int:
    """The process id of rank 1, by its environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"\0RANK=1\0" in b"\0" + (folder / "environ").read_bytes():
                return int(folder.name)
        except OSError:  # it has just ended
            continue
    sys.exit(f"process {launcher} has started no rank 1")


def seconds_to_end(process: subprocess.Popen[bytes]) -> float:
    """Until the launcher has ended."""
    began = time.monotonic()
    process.wait()
    return round(time.monotonic() - began, 1)


def tried(name: str, recipe: Path, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of one launcher, and what its two runs ended with."""
    folder.mkdir()
    whole, broken = folder / "unbroken", folder / "killed"
    seconds = seconds_to_end(start(name, recipe, whole))
    process = start(name, recipe, broken)
    while not (broken / "checkpoint-2").exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(rank_one(process.pid), signal.SIGKILL)
    figures: dict[str, Any] = {"unbroken_seconds": seconds}
    figures["seconds_until_launcher_ended"] = seconds_to_end(process)
    figures["code"] = process.returncode
    said = broken.with_suffix(".txt").read_text(errors="replace").splitlines()
    ours = [line for line in said if line.startswith("unigame: error")]
    figures["said"] = [line.replace(str(folder.parent), "...") for line in ours]
    figures["tracebacks_of_ranks"] = sum("[rank" in line and "Traceback" in line for line in said)
    again = start(name, recipe, broken)
    seconds_to_end(again)
    figures["resumed_code"] = again.returncode
    return figures, [ended_with(run, STEPS) for run in (whole, broken)]


def main() -> None:
    """Both launchers, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    recipe = make_recipe(args.folder, STEPS)
    figures: dict[str, Any] = {}
    ends: list[dict[str, Any]] = []
    for name in LAUNCHERS:
        figures[name], both = tried(name, recipe, args.folder / name.partition(" ")[0])
        ends += both
        print(json.dumps(figures[name]), file=sys.stderr, flush=True)
    figures["all_equal_to_the_bit"] = all(end == ends[0] for end in ends)
    settings = {"processes": 2, "steps": STEPS, "accelerate": accelerate.__version__}
    write(figures, settings, args.json)


if __name__ == "__main__":
    main()
