"""What ``test_two_ranks`` starts in each process: a game, fine-tuning, RecA, drawings, noise."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peft
import torch

from tests.tiny_bagel import shared_tiny_bagel
from tests.training.helpers import (
    LORA,
    Records,
    game_of,
    lora_weights,
    make_config,
    make_game,
    make_trainer,
    whole_and_resumed,
)
from unigame.backbones import load_backbone
from unigame.backbones.bagel import flow
from unigame.methods.reca import RecA
from unigame.methods.registry import build_methods
from unigame.training.trainer import UniGameTrainer


class Epochs(Records):
    """Records that note which epoch they were told of."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def sft_settings(batch: int) -> dict[str, Any]:
    return {
        "data": Records(8),
        "methods": ["sft"],
        "per_device_train_batch_size": batch,
        "max_steps": 2,
        "lr_scheduler_type": "constant",
    }


def game_settings(batch: int) -> dict[str, Any]:
    return {"per_device_train_batch_size": batch, "generation_weight": 0.0}


def reca_settings(batch: int) -> dict[str, Any]:
    """Every picture is drawn again, with one text: nothing is left to a lot."""
    method = RecA(share=1.0, weight=0.5, templates=["describe the picture"])
    return {**sft_settings(batch), "methods": [method]}


class EvenRows(Records):
    """Odd rows hold nothing but a picture, so that of two ranks one has none of them."""

    picture_only = True

    def __init__(self, size: int):
        super().__init__(size)
        for item in self.items[1::2]:
            item["question"] = item["answer"] = None


class Sided(Records):
    """Only even rows have a caption, so that the second of two ranks has nothing to draw."""

    def __init__(self, size: int):
        super().__init__(size, captions=True)
        for item in self.items[1::2]:
            item["caption"] = None


def teach(model: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    """Both methods of verified drawings, where one rank has drawings to learn and one has none."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = folder / f"texts-{os.getpid()}.txt"
    texts.write_text("a red circle\na green circle", encoding="utf-8")
    shared: dict[str, Any] = {"verifier": "none", "drawings": 1, "guidance_scale": 1.0}
    shared |= {"every": 1, "captions": 1, "answer_tokens": 2}
    trainer = make_trainer(
        model,
        folder / "taught",
        Sided(8),
        methods=build_methods({"verify": shared, "imagine": {**shared, "texts": str(texts)}}),
        max_steps=2,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        **settings,
    )
    trainer.train()
    stores = {name: trainer.method(name).store.drawings for name in ("verify", "imagine")}
    captions = {name: [one.caption for one in drawings] for name, drawings in stores.items()}
    rounds = trainer.method("verify").tally.recent
    return {"u": lora_weights(trainer), "rounds": rounds, **captions}


def packed(model: Path, folder: Path, batch: int, **settings: Any) -> UniGameTrainer:
    """Fine-tuning, or with ``methods`` more, on a base in 4 bits."""
    backbone = load_backbone(model, device="cpu", quantization="nf4")
    torch.manual_seed(0)  # of LoRA's initial weights
    backbone.add_lora(peft.LoraConfig(**LORA))
    data, methods = Records(8), settings.pop("methods", ["sft"])
    args = make_config(folder, per_device_train_batch_size=batch, **settings)
    return UniGameTrainer(backbone, args, data, methods=methods)


def play_packed(model: Path, folder: Path) -> dict[str, Any]:
    """What two ranks learn on a base in 4 bits; nothing where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        return {}
    sft = packed(model, folder / "packed-sft", batch=2)
    sft.train()
    game = packed(model, folder / "packed-game", batch=2, methods=[make_game(buffer_min_size=1)])
    game.train()
    return {"sft": weights_of(sft), "game": weights_of(game)}


def learn_by_noise(folder: Path) -> dict[str, Any]:
    """A run on captions of a model that learns by noise, and one that stops and goes on.

    Returns:
        The noise level of each step of the whole run, then of the other; the whole one's weights.
    """
    levels: list[float] = []
    shifted = flow.shifted

    def noted(level: torch.Tensor, shift: float) -> torch.Tensor:
        found = shifted(level, shift)
        levels.extend(found.tolist())
        return found

    flow.shifted = noted
    try:
        whole, _ = whole_and_resumed(
            shared_tiny_bagel(),
            folder,
            Records(8, captions=True),
            lambda: ["sft"],
            steps=4,
            generation_weight=1.0,
            per_device_train_batch_size=1,
        )
    finally:
        flow.shifted = shifted
    return {"levels": levels, "u": lora_weights(whole)}


def weights_of(trainer: UniGameTrainer) -> dict[str, dict[str, torch.Tensor]]:
    found = {"u": lora_weights(trainer)}
    if any(method.name == "selfplay" for method in trainer.methods):
        perturber = game_of(trainer).perturber.named_parameters()
        found["c"] = {name: weight.detach().clone() for name, weight in perturber}
    return found


def main(model: Path, folder: Path) -> None:
    """Run all and write what this rank ended with."""
    data = Epochs(12)
    game = make_trainer(
        model,
        folder / "game",
        **game_settings(batch=2),
        data=data,
        max_steps=4,  # the fourth is the second epoch's
        buffer_min_size=1,
        missing_captions="model",
        keep_examples=2,  # of rank 0 alone
    )
    game.train()
    read = torch.tensor(len(game_of(game).buffer))
    recent = game_of(game).buffer.recent.state_dict()["minings"]
    sft = make_trainer(model, folder / "sft", **sft_settings(batch=2))
    sft.train()
    reca = make_trainer(model, folder / "reca", **reca_settings(batch=2))
    reca.train()
    alone = make_trainer(
        model,
        folder / "alone",
        data=EvenRows(4),
        methods=[RecA(share=1.0, pictures="alone")],
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
    )
    alone.train()
    taught = teach(model, folder)
    record = {
        "taught": taught,
        "game": {**weights_of(game), "hard": {"read": read}, "recent": recent, "epoch": data.epoch},
        "described": game_of(game).captions.made,
        "sft": weights_of(sft),
        "reca": weights_of(reca),
        "packed": play_packed(model, folder),
        "alone": {**weights_of(alone), "drawn": alone.method("reca").drawn},
        "noise": learn_by_noise(folder / "noise"),
    }
    torch.save(record, folder / f"rank{game.args.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
