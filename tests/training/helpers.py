"""Small records, configurations and trainers, so that each test says only what it is about."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from PIL import Image
from torch.utils.data import Dataset

from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.methods.selfplay import SelfPlay
from unigame.training.config import UniGameConfig
from unigame.training.trainer import UniGameTrainer

COLOURS = ("red", "green", "blue", "yellow")
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}


class Records(Dataset[dict[str, Any]]):
    """``size`` random pictures with a question and a one-word answer each."""

    def __init__(self, size: int = 8, *, captions: bool = False, long_answers: bool = False):
        self.items = []
        for i in range(size):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            colour = COLOURS[i % 4]
            answer = f"a {colour} circle" if long_answers and i % 2 else colour
            self.items.append(
                {
                    "image": Image.fromarray(pixels),
                    "question": "what colour is it",
                    "answer": answer,
                    "caption": f"a {colour} circle" if captions else None,
                    "id": str(i),
                }
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


class Losses:
    """A trainer's logged loss of every step."""

    def __init__(self, history: Sequence[dict[str, float]]):
        self.values = [entry["loss"] for entry in history if "loss" in entry]


GAME: dict[str, Any] = {
    "perturber_width": 16,
    "eps_mode": "relative",
    "eps_max": 1.0,
    "eps_init": 0.5,
    "clip_floor": -1.0,
    "hard_quantile": 0.0,
    "missing_captions": "question",  # a random model's descriptions are long, and say nothing
    "keep_examples": 0,  # pictures for a report are slow to make, and few tests look at them
}


def blocks(settings: dict[str, Any]) -> dict[str, Any]:
    """The ``methods`` and ``training`` blocks of a recipe with these settings, by name."""
    rest = dict(settings)
    methods = rest.pop("methods", None)
    game = {name: rest.pop(name) for name in list(rest) if name in SelfPlay.rules()}
    return {"methods": {"selfplay": game} if methods is None else methods, "training": rest}


def make_config(folder: Path, **settings: Any) -> UniGameConfig:
    """Settings of a small run; those of self-play are left to ``make_game``."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "coverage_points": 0,
    }
    own = {name: value for name, value in settings.items() if name not in SelfPlay.rules()}
    return UniGameConfig(**{**defaults, **own})


def make_game(**settings: Any) -> SelfPlay:
    """Self-play of a small run, with those of the settings that are its own."""
    own = {name: value for name, value in settings.items() if name in SelfPlay.rules()}
    return SelfPlay(**{**GAME, **own})


@functools.lru_cache(maxsize=4)
def loaded(model: Path, state: tuple[tuple[str, int, int], ...]) -> Backbone:
    return load_backbone(model, device="cpu")


def fresh(model: Path) -> Backbone:
    """What ``load_backbone`` gives: a copy of what was loaded before, unless a file has changed."""
    stats = ((file.name, file.stat()) for file in sorted(Path(model).iterdir()))
    return copy.deepcopy(
        loaded(model, tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats))
    )


def make_trainer(
    model: Path,
    folder: Path,
    data: Dataset[dict[str, Any]] | None = None,
    *,
    dropout: float = 0.0,
    eval_dataset: Any = None,
    kind: type[UniGameTrainer] = UniGameTrainer,
    methods: Sequence[Any] | None = None,
    **settings: Any,
) -> UniGameTrainer:
    """A trainer of a small run; ``settings`` are the run's and self-play's, by name."""
    backbone = fresh(model)
    torch.manual_seed(0)  # of LoRA's initial weights
    return kind(
        model=backbone,
        args=make_config(folder, **settings),
        train_dataset=data or Records(),
        eval_dataset=eval_dataset,
        peft_config=peft.LoraConfig(**{**LORA, "lora_dropout": dropout}),
        methods=[make_game(**settings)] if methods is None else methods,
    )


def game_of(trainer: UniGameTrainer) -> SelfPlay:
    return trainer.method("selfplay")


def lora_weights(trainer: UniGameTrainer) -> dict[str, torch.Tensor]:
    return {
        name: weight.detach().clone()
        for name, weight in trainer.backbone.named_parameters()
        if weight.requires_grad
    }


def whole_and_resumed(
    model: Path,
    folder: Path,
    data: Dataset[dict[str, Any]],
    methods: Callable[[], Sequence[Any]],
    *,
    steps: int,
    **settings: Any,
) -> tuple[UniGameTrainer, UniGameTrainer]:
    """A run, and one that stopped after two steps and went on: their weights are equal to the bit.

    Args:
        model: tiny.
        folder: both write below it.
        data: to train on.
        methods: makes new ones.
        steps: of both.
        settings: of the runs.
    """

    def run(name: str, steps: int, resume: bool = False) -> UniGameTrainer:
        trainer = make_trainer(
            model,
            folder / name,
            data,
            methods=methods(),
            max_steps=steps,
            lr_scheduler_type="constant",
            save_strategy="steps",
            save_steps=2,
            **settings,
        )
        trainer.train(resume_from_checkpoint=resume or None)
        return trainer

    whole = run("whole", steps)
    run("parts", 2)
    resumed = run("parts", steps, resume=True)
    after = lora_weights(resumed)
    for name, weight in lora_weights(whole).items():
        assert torch.equal(weight, after[name]), name
    return whole, resumed


def logs(trainer: UniGameTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]
