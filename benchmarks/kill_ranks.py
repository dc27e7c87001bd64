"""kill -9 of one rank at random moments: how the others end, and whether the run goes on exactly.

    python benchmarks/kill_ranks.py runs/kill --ranks 4 --json FILE

A game with a buffer on a tiny random Janus, on CPUs (gloo), through the command line's own
``main``: once unbroken, then once for each moment. There one rank is killed; the seconds until the
last of the others has ended are taken, those of a core that they computed (a machine that does
other work as well takes longer), and what they said. The same command with
``--resume_from_checkpoint auto`` then goes on, and all that it ends with is compared with the
unbroken run, bit for bit.

The ranks are forked from this process, which has imported everything: a launcher's own imports are
left out. No launcher helps either: ``torchrun`` would end the others, too (``launchers.py``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from forked import Rank, run, start, wait
from record import write

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a clone can be run without installing it

import unigame.training.run  # noqa: E402, F401 - what every rank would import
import unigame.training.trainer  # noqa: E402, F401
from tests.tiny import make_tiny_janus  # noqa: E402
from tests.training.helpers import GAME, Records  # noqa: E402
from unigame.cli.main import main as unigame  # noqa: E402

LIMIT_SECONDS = 120  # of the others' end; a hang is what this looks for
RESULT = ("adapter_model.safetensors", "perturber.safetensors")


def said(rank: Rank) -> str:
    """Its last line, and how many lines of trouble stand above it."""
    above = [line for line in rank.lines[:-1] if "rror" in line or line.startswith("Traceback")]
    last = rank.lines[-1] if rank.lines else ""
    return f"{last} ({len(above)} lines of trouble above)" if above else last


def exact(value: Any) -> Any:
    """The value in plain words that are equal only where all bits are.

    Bytes of a file will not do: pickle writes a text once or twice by which object it is.
    """
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, dict):
        return {str(name): exact(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [exact(one) for one in value]
    return repr(value)


def ended_with(run: Path, steps: int) -> dict[str, Any]:
    """What a run left: its result, and everything that moves in the last checkpoint."""
    last = run / f"checkpoint-{steps}"
    files = [folder / name for folder in (run, last) for name in RESULT]
    found: dict[str, Any] = {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    for file in sorted(last.glob("*.pt*")):
        if not file.name.startswith("training_args"):
            state = torch.load(file, weights_only=False)  # our own; random states are numpy's
            found[str(file.relative_to(run))] = exact(state)
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    found["losses"] = str([entry["loss"] for entry in log if "loss" in entry])
    return found


def make_recipe(folder: Path, steps: int) -> Path:
    """A model, pictures and a recipe of the game."""
    make_tiny_janus(folder / "janus")
    rows = []
    for item in Records(32, captions=True).items:
        item["image"].save(folder / f"{item['id']}.png")
        rows.append({**item, "image": f"{item['id']}.png"})
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    tree: dict[str, Any] = {
        "model": str(folder / "janus"),
        "data": [{"type": "vqa", "path": str(folder / "rows.jsonl")}],
        "lora": {"r": 4, "lora_dropout": 0.05},
        "methods": {"selfplay": {**GAME, "num_candidates": 2, "buffer_min_size": 1}},
        "training": {
            "max_steps": steps,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 2,
            "save_total_limit": 3,
            "generation_weight": 0.5,
            "coverage_points": 0,
            "disable_tqdm": True,
            "use_cpu": True,
        },
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def killed(
    words: list[str], ranks: int, folder: Path, moment: float, victim: int
) -> dict[str, Any]:
    """One run in which ``victim`` is killed after ``moment`` seconds, and what came after."""
    output = folder / "run"
    words = [*words, "--output_dir", str(output)]
    started = start(partial(unigame, words), ranks, folder / "said")
    end = time.monotonic() + moment
    while time.monotonic() < end and not started[victim].poll():
        time.sleep(0.005)
    had_ended = started[victim].poll()
    if not had_ended:
        os.kill(started[victim].pid, signal.SIGKILL)
    others = [rank for number, rank in enumerate(started) if number != victim]
    before = [rank.computed_so_far for rank in others]
    seconds = wait(others, LIMIT_SECONDS)
    computed = [rank.computed - so_far for rank, so_far in zip(others, before, strict=True)]
    wait(started, LIMIT_SECONDS)
    steps = [int(path.name.partition("-")[2]) for path in output.glob("checkpoint-*")]
    found = {
        "after_seconds": round(moment, 2),
        "killed": victim,
        "had_ended_already": had_ended,
        "newest_checkpoint": max(steps, default=0),
        "seconds_until_all_ended": round(seconds, 2),
        "core_seconds_until_all_ended": round(sum(computed), 2),
        "codes": [rank.code for rank in others],
        "said": [said(rank).replace(str(folder.parent), "...") for rank in others],
    }
    if not (output / "trainer_state.json").exists():  # the last thing that a run writes
        again = partial(unigame, [*words, "--resume_from_checkpoint", "auto"])
        run(again, ranks, folder / "resumed", 10 * LIMIT_SECONDS)
    return found


def main() -> None:
    """The unbroken run, then one for each moment."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    words = ["train", str(make_recipe(args.folder, args.steps))]
    whole = args.folder / "unbroken"
    unbroken = partial(unigame, [*words, "--output_dir", str(whole)])
    duration = run(unbroken, args.ranks, args.folder / "said", 10 * LIMIT_SECONDS)
    expected = ended_with(whole, args.steps)
    lot = random.Random(args.seed)
    moments = []
    for number in range(args.moments):
        moment, victim = lot.random() * duration, lot.randrange(args.ranks)
        folder = args.folder / f"moment{number}"
        one = killed(words, args.ranks, folder, moment, victim)
        end = ended_with(folder / "run", args.steps)
        one["differ"] = [name for name in expected if end.get(name) != expected[name]]
        moments.append(one)
        print(json.dumps(one), file=sys.stderr, flush=True)
    figures = {
        "equal_to_the_bit": sum(not one["differ"] for one in moments),
        "slowest_end_seconds": max(one["seconds_until_all_ended"] for one in moments),
        "most_core_seconds_of_an_end": max(one["core_seconds_until_all_ended"] for one in moments),
        "unbroken_seconds": round(duration, 1),
        "compared": sorted(expected),
        "moments": moments,
    }
    settings = {"ranks": args.ranks, "steps": args.steps, "save_steps": 2, "seed": args.seed}
    write(figures, settings, args.json)


if __name__ == "__main__":
    main()
