"""Sharded frozen weights against whole ones, 20 steps on CPUs: largest differences.

    python -m benchmarks.sharded_equality FOLDER model      # makes the model
    torchrun --nproc_per_node 2 -m benchmarks.sharded_equality FOLDER

Three runs of each kind on a tiny random Janus: the game with buffers, fine-tuning, and fine-tuning
with accumulation. The first process then repeats the fine-tuning alone, with accumulation; the game
is left out there, because C moves once in each micro-batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.tiny import make_tiny_janus
from tests.training.helpers import Losses, Records, lora_weights, make_trainer

STEPS = 20
RUNS: dict[str, dict[str, Any]] = {
    "game": {"num_candidates": 2, "buffer_min_size": 1},
    "sft": {"methods": ["sft"]},
    "accumulated": {"methods": ["sft"], "gradient_accumulation_steps": 2},
}


def run(model: Path, folder: Path, name: str, mode: str, times: int = 1) -> dict[str, Any]:
    """Losses and adapter after ``STEPS``; ``times`` as much accumulation."""
    settings = {"gradient_accumulation_steps": 1, **RUNS[name]}
    settings["gradient_accumulation_steps"] *= times
    trainer = make_trainer(
        model,
        folder / f"{name}-{mode}-{times}",
        Records(16),
        shard_frozen=mode,
        max_steps=STEPS,
        per_device_train_batch_size=2,
        **settings,
    )
    trainer.train()
    return {"losses": Losses(trainer.state.log_history).values, "u": lora_weights(trainer)}


def apart(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """The largest differences of two runs."""
    losses = zip(one["losses"], other["losses"], strict=True)
    weights = ((one["u"][name] - other["u"][name]).abs().max().item() for name in one["u"])
    return {"losses": max(abs(a - b) for a, b in losses), "adapter": max(weights)}


def main(folder: Path) -> None:
    """All runs; the first process prints the differences."""
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "-1"))
    if rank < 0:  # started by the first process of a launch: alone
        found = {name: run(folder / "janus", folder, name, "none", 2) for name in list(RUNS)[1:]}
        torch.save(found, folder / "alone.pt")
        return
    model = folder / "janus"
    if not model.exists():
        raise SystemExit("make the model first: python -m benchmarks.sharded_equality FOLDER model")
    runs = {m: {n: run(model, folder, n, m) for n in RUNS} for m in ("none", "language")}
    if rank:
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    alone = {k: v for k, v in os.environ.items() if k not in names and "TORCHELASTIC" not in k}
    subprocess.run([sys.executable, "-m", __spec__.name, str(folder)], env=alone, check=True)
    single = torch.load(folder / "alone.pt", weights_only=True)
    figures: dict[str, Any] = {"steps": STEPS, "torch": torch.__version__}
    figures["sharded against whole"] = {
        name: apart(runs["language"][name], runs["none"][name]) for name in RUNS
    }
    figures["sharded against one process"] = {
        name: apart(runs["language"][name], single[name]) for name in single
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    if sys.argv[2:] == ["model"]:
        make_tiny_janus(Path(sys.argv[1]) / "janus")
    else:
        main(Path(sys.argv[1]))
