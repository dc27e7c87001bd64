"""Runs whose ranks see rows of different kinds, for ``test_ranks``. Arguments: model, folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.training.helpers import Losses, Records, game_of, lora_weights, make_trainer


class Sorted(Records):
    """Even rows can only be answered, odd ones only drawn: a rank sees one kind at a time.

    Of ``text`` there is no picture, of ``several`` there are two; both can only be answered.
    """

    def __init__(self, size: int, text: Sequence[int] = (), several: Sequence[int] = ()):
        super().__init__(size, captions=True)
        for i, item in enumerate(self.items):
            if i % 2:
                item["question"] = item["answer"] = None
            else:
                item["caption"] = None
        for i in (*text, *several):
            pictures = [self.items[i - 1]["image"], self.items[i]["image"]] if i in several else []
            texts = {"question": "what colour is it", "answer": "a red circle", "caption": None}
            self.items[i] |= {"image": None, "images": pictures, **texts}


def checksum(weights: dict[str, torch.Tensor]) -> float:
    return sum(float(weight.double().abs().sum()) for weight in weights.values())


def joint(model: Path, folder: Path, batch: int) -> list[float]:
    """Fine-tuning on records of two kinds, in their own order."""
    trainer = make_trainer(
        model,
        folder / "joint",
        Sorted(8, text=[2], several=[5]),
        methods=["sft"],
        generation_weight=0.5,
        max_steps=3,
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",
    )
    trainer.train()
    return Losses(trainer.state.log_history).values


def main(model: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    losses = joint(model, folder, batch=1)
    game = make_trainer(
        model,
        folder / "game",
        Sorted(8, text=[6]),  # in the last step no rank has anything to play on
        max_steps=4,
        generation_weight=0.5,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        save_strategy="steps",
        save_steps=2,
        missing_captions="model",  # rank 1 has nothing to describe
        keep_examples=2,  # of rank 0 alone
    )
    game.train()
    rank = game.args.process_index
    result = {
        "losses": losses,
        "lora": checksum(lora_weights(game)),
        "perturber": checksum(game_of(game).perturber.state_dict()),
        "updates": sorted(int(s["step"]) for s in game_of(game).optimizer.state.values())[-1],
        "buffer": len(game_of(game).buffer),
        "logs": [entry for entry in game.state.log_history if "loss" in entry],
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
