"""Runs with and without sharded frozen weights, for ``test_sharding``. Arguments: model, folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tests.training.helpers import Losses, Records, game_of, lora_weights, make_trainer
from tests.training.ranks import teach
from tests.training.two_ranks import Sorted
from unigame.errors import UserError
from unigame.methods.base import Method
from unigame.training.trainer import UniGameTrainer

SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "num_candidates": 2,
    "buffer_min_size": 1,
    "generation_weight": 0.5,
    "gradient_checkpointing": True,
    "redrawn_every": 1,
    "per_device_train_batch_size": 1,
    "train_sampling_strategy": "sequential",
    "save_strategy": "steps",
    "save_steps": 2,
    "missing_captions": "model",  # rank 1 has nothing to describe
    "coverage_points": 2,
    "keep_examples": 1,
}

EVALUATED = (1, 5, 7, 8)
"""Rows: of the first two the second process has no row of its own in its last batch."""


def game(model: Path, folder: Path, mode: str) -> UniGameTrainer:
    """Rank 0 sees only answers, rank 1 only captions and, in step 3, a text."""
    return make_trainer(model, folder / mode, Sorted(8, text=[6]), shard_frozen=mode, **SETTINGS)


def tuned(
    model: Path, folder: Path, *, accumulation: int = 1, mode: str = "none"
) -> UniGameTrainer:
    """Fine-tuning of four rows a step: two processes, or one that accumulates."""
    return make_trainer(
        model,
        folder,
        Records(12),
        methods=["sft"],
        shard_frozen=mode,
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        save_strategy="steps",
        save_steps=2,
    )


def evaluated(model: Path, folder: Path, mode: str = "none") -> list[float]:
    """Losses of evaluations whose rows do not fill the batches of two processes."""
    trainer = make_trainer(
        model,
        folder,
        Records(4, captions=True),
        methods=["sft"],
        shard_frozen=mode,
        generation_weight=0.5,
        per_device_eval_batch_size=2,
    )
    losses = []
    for size in EVALUATED:
        data = Records(size, captions=True, long_answers=True)
        data.items[-1]["caption"] = None
        losses.append(trainer.evaluate(data)["eval_loss"])  # type: ignore[arg-type]
    return losses


def found(trainer: UniGameTrainer) -> dict[str, Any]:
    sharded = [w for w in trainer.backbone.parameters() if isinstance(w, DTensor)]
    return {
        "losses": Losses(trainer.state.log_history).values,
        "u": lora_weights(trainer),
        "c": game_of(trainer).perturber.state_dict(),
        "sharded": sum(w.numel() for w in sharded),
        "held": sum(w.to_local().numel() for w in sharded),
        "learns": any(w.requires_grad for w in sharded),
        "digest": trainer.backbone.weights_digest(),
        "reordered": trainer.model_wrapped._has_rebuilt_buckets,
    }


@dataclass
class NoSettings:
    pass


class Strange(Method):
    """Of somebody who did not think of sharding."""

    name = "strange"
    Settings = NoSettings


def refused(model: Path, folder: Path) -> str:
    try:
        make_trainer(model, folder / "no", Records(4), shard_frozen="language", methods=[Strange()])
    except UserError as error:
        return str(error)
    return ""


def main(model: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    record = {}
    for mode in ("none", "language"):
        trainer = game(model, folder, mode)
        trainer.train()
        record[mode] = found(trainer)
    resumed = game(model, folder, "language+vision")
    resumed.train(resume_from_checkpoint=str(folder / "none" / "checkpoint-2"))
    record["resumed"] = found(resumed)
    sft = tuned(model, folder / "sft", mode="language")
    sft.train()
    record["sft"] = {"losses": Losses(sft.state.log_history).values, "u": lora_weights(sft)}
    record["taught"] = teach(model, folder / "taught", shard_frozen="language+vision")
    record["evaluated"] = {
        mode: evaluated(model, folder / f"evaluated-{mode}", mode) for mode in ("none", "language")
    }
    rank = resumed.args.process_index
    torch.save(record, folder / f"rank{rank}.pt")
    (folder / f"refused{rank}.json").write_text(json.dumps(refused(model, folder)))
