"""Sharded frozen weights against whole ones on a tiny random model of every family.

    python benchmarks/sharded_families.py runs/families --json FILE

Two processes on CPUs play some steps of the game with the model's own captions, its layers whole or
in shards, the vision transformer's too where there is one. Largest differences of losses, adapter
and C; and the share of the sharded weights that a process holds.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import forked
import torch
from record import write
from sharded_equality import apart, players_of
from torch.distributed.tensor import DTensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a clone can be run without installing it

import unigame.backbones.bagel.load  # noqa: E402
import unigame.backbones.chameleon.load  # noqa: E402
import unigame.backbones.composed.load  # noqa: E402
import unigame.backbones.emu3.load  # noqa: E402, F401 - imports of the processes to come
from tests.backbones.conftest import FAMILIES  # noqa: E402
from tests.training.helpers import Records, logs, make_trainer  # noqa: E402

STEPS = 3


def train(model: Path, folder: Path, mode: str) -> dict[str, Any]:
    """What a run ends with."""
    trainer = make_trainer(
        model,
        folder,
        Records(7, captions=False),  # the last step is uneven
        shard_frozen=mode,
        max_steps=STEPS,
        per_device_train_batch_size=2,
        num_candidates=2,
        buffer_min_size=1,
        missing_captions="model",
        generation_weight=0.5,
        coverage_points=2,
        keep_examples=1,
    )
    trainer.train()
    sharded = [w for w in trainer.backbone.parameters() if isinstance(w, DTensor)]
    whole = sum(w.numel() for w in sharded)
    return {
        "losses": [entry["loss"] for entry in logs(trainer)],
        "players": players_of(trainer),
        "held": sum(w.to_local().numel() for w in sharded) / whole if whole else 1.0,
        "sharded": whole / sum(w.numel() for w in trainer.backbone.parameters()),
        "vision": bool(trainer.backbone.frozen_towers()),
    }


def work(folder: Path, name: str) -> None:
    """A family's runs; the first process writes what they ended with."""
    torch.set_num_threads(1)
    found = {"none": train(folder / name, folder / f"{name}-none", "none")}
    mode = "language+vision" if found["none"]["vision"] else "language"
    found["sharded"] = train(folder / name, folder / f"{name}-sharded", mode)
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / f"{name}.pt")


def main() -> None:
    """One family after another."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one family")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    figures = {}
    for name in args.families:
        # A copy: the shared one goes when the first process ends.
        shutil.copytree(FAMILIES[name](), args.folder / name)
        said = args.folder / f"said-{name}"
        forked.run(lambda name=name: work(args.folder, name), 2, said, args.limit)  # type: ignore[misc]
        found = torch.load(args.folder / f"{name}.pt", weights_only=True)
        figures[name] = {
            **apart(found["sharded"], found["none"]),
            "of all weights in shards": round(found["sharded"]["sharded"], 3),
            "of them held by a process": round(found["sharded"]["held"], 3),
            "vision too": found["none"]["vision"],
        }
    write(figures, {"steps": STEPS, "processes": 2}, args.json)


if __name__ == "__main__":
    main()
