"""One run on 1, 2 and 4 processes, frozen weights whole or in shards: largest differences.

    python benchmarks/sharded_equality.py runs/equal --json FILE

Each method on a tiny random Janus, on CPUs (gloo), 20 steps of 8 rows: 4 processes (DDP), 4 with
sharded frozen layers (FSDP2), the same of 2 processes, and one process alone; each accumulates so
many micro-batches of 2 rows as make up the 8. Losses, adapter and C are compared. Then the
checkpoint of step 10 of the 4 processes goes on with 2, with 2 that shard, and with 1.

Where a process draws by lot, or keeps samples of its own, runs on other numbers of processes are
others by design (docs/running.md). So the game that is compared over all of them draws the
likeliest codes, takes every candidate and replays the step's own (``buffer: false``). A second
game, with buffers and lots, is compared between whole and sharded weights on equally many
processes, and resumed on fewer.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import forked
import torch
from record import write

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a clone can be run without installing it

from tests.tiny import make_tiny_janus  # noqa: E402
from tests.training.helpers import Records, logs, lora_weights, make_trainer  # noqa: E402
from unigame.methods.reca import RecA  # noqa: E402
from unigame.training.trainer import UniGameTrainer  # noqa: E402

STEPS, MIDDLE = 20, 10
LOSSES, WEIGHTS = 1e-5, 1e-4  # largest differences that may be
ROWS = 2  # of a micro-batch
MICRO_BATCHES = 4  # of a step, over all processes
EXACT: dict[str, dict[str, Any]] = {
    "selfplay": {"buffer": False, "generation_weight": 0.5},
    "sft": {"generation_weight": 0.5},
    "reca": {"generation_weight": 0.5},
}
BUFFERS: dict[str, Any] = {"num_candidates": 2, "buffer_min_size": 1, "hard_quantile": 0.5}
Found = dict[str, dict[str, Any]]


def methods(name: str) -> dict[str, Any]:
    """What of a run's settings depends on the method."""
    if name == "sft":
        return {"methods": ["sft"]}
    if name == "reca":
        return {"methods": [RecA(share=1.0, weight=0.5, templates=["describe the picture"])]}
    return {}


def train(
    folder: Path, name: str, processes: int, mode: str, resumed: Path | None = None
) -> dict[str, Any]:
    """What a run ends with."""
    trainer = make_trainer(
        folder / "janus",
        folder / f"{name}-{processes}-{mode}{'-resumed' if resumed else ''}",
        Records(16, captions=True),
        shard_frozen=mode,
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=MICRO_BATCHES // processes,
        save_strategy="steps",
        save_steps=MIDDLE,
        **methods(name),
        **(EXACT[name] if name in EXACT else BUFFERS),
    )
    before = players_of(trainer)
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    log = logs(trainer)
    return {
        "losses": [entry["loss"] for entry in log],
        "players": players_of(trainer),
        "before": before,
        "replayed": sum(entry.get("replayed", 0.0) for entry in log),
    }


def players_of(trainer: UniGameTrainer) -> dict[str, torch.Tensor]:
    """LoRA's weights and, under names of their own, those of the methods."""
    players = lora_weights(trainer)
    for method in trainer.methods:
        players |= {f"C.{name}": weight.detach().clone() for name, weight in method.weights()}
    return players


def work(folder: Path, processes: int, goes_on: bool) -> None:
    """All runs of one number of processes; the first writes what they ended with."""
    torch.set_num_threads(1)
    found: Found = {}
    for mode in ("none", "language") if processes > 1 else ("none",):
        for name in [*EXACT, "buffers"] if processes > 1 or goes_on else EXACT:
            before = folder / f"{name}-4-none" / f"checkpoint-{MIDDLE}" if goes_on else None
            found[f"{name} {mode}"] = train(folder, name, processes, mode, before)
    if processes == 1 or torch.distributed.get_rank() == 0:
        torch.save(found, folder / file_of(processes, goes_on))


def file_of(processes: int, goes_on: bool) -> str:
    """Where ``work`` writes."""
    return f"{processes}{'-resumed' if goes_on else ''}.pt"


def apart(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """The largest differences of two runs."""
    assert one["players"].keys() == other["players"].keys()
    losses = [abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True)]
    return {"losses": short(max(losses)), **furthest(one["players"], other["players"])}


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest difference of each player's weights."""
    found: dict[str, float] = {}
    for name, weight in one.items():
        player = "C" if name.startswith("C.") else "adapter"
        most = (weight - other[name]).abs().max().item()
        found[player] = max(found.get(player, 0.0), most)
    return {name: short(value) for name, value in found.items()}


def short(value: float) -> float:
    """With two figures."""
    return float(f"{value:.2g}")


def beyond(figures: dict[str, dict[str, Any]]) -> list[str]:
    """What differs by more than it may."""
    return [
        f"{pair}, {name}: {what} {value}"
        for pair, runs in figures.items()
        for name, found in runs.items()
        for what, value in found.items()
        if value > (LOSSES if what == "losses" else WEIGHTS)
    ]


def compared(runs: dict[str, Found]) -> dict[str, dict[str, Any]]:
    """The figures of the result file."""
    figures: dict[str, dict[str, Any]] = {}
    for number in ("2", "4"):
        pair = {
            name: apart(runs[number][f"{name} language"], runs[number][f"{name} none"])
            for name in [*EXACT, "buffers"]
        }
        figures[f"{number} processes: sharded against whole"] = pair
        for mode, shown in (("none", "whole"), ("language", "sharded")):
            figures[f"{number} processes, {shown}, against one that accumulates"] = {
                name: apart(runs[number][f"{name} {mode}"], runs["1"][f"{name} none"])
                for name in EXACT
            }
    for number, mode in (("2", "none"), ("2", "language"), ("1", "none")):
        shown = f"{number}{', sharded' if mode == 'language' else ''}"
        figures[f"4 processes, resumed at step {MIDDLE} on {shown}, against 4 unbroken"] = {
            name: apart(runs[f"{number}-resumed"][f"{name} {mode}"], runs["4"][f"{name} none"])
            for name in EXACT
        }
    return figures


def main() -> None:
    """All runs, one number of processes after another, and their differences."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one number of them")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    make_tiny_janus(args.folder / "janus")
    runs: dict[str, Found] = {}
    seconds = {}
    for processes, goes_on in ((4, False), (2, False), (1, False), (2, True), (1, True)):
        file = file_of(processes, goes_on)
        seconds[file.removesuffix(".pt")] = round(
            forked.run(
                lambda p=processes, g=goes_on: work(args.folder, p, g),  # type: ignore[misc]
                processes,
                args.folder / f"said-{file}",
                args.limit,
            )
        )
        runs[file.removesuffix(".pt")] = torch.load(args.folder / file, weights_only=True)
        print(f"{file}: {seconds}", file=sys.stderr, flush=True)
    figures = compared(runs)
    alone, four = runs["1"], runs["4"]
    moved = {
        name: furthest(alone[f"{name} none"]["players"], alone[f"{name} none"]["before"])
        for name in EXACT
    }
    record: dict[str, Any] = {"beyond": beyond(figures), "largest differences": figures}
    record["moved in the run of one process"] = moved
    record["replayed a step and process"] = {
        name: short(four[f"{name} none"]["replayed"] / STEPS) for name in ("selfplay", "buffers")
    }
    record["last five losses with buffers and lots"] = {
        number: short(sum(runs[number]["buffers none"]["losses"][-5:]) / 5)
        for number in ("4", "2", "2-resumed", "1-resumed")
    }
    settings = {"steps": STEPS, "rows of a step": ROWS * MICRO_BATCHES, "seconds": seconds}
    settings |= {"runs": json.loads(json.dumps({**EXACT, "buffers": BUFFERS}))}
    write(record, settings, args.json)
    if record["beyond"]:
        sys.exit("some runs differ by more than they may")


if __name__ == "__main__":
    main()
