"""What arms of ``evidence.py`` train on beside clean questions: real rows, captions, a new task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from evidence_presets import Settings
from torch.utils.data import Dataset

from unigame.evaluation.world import images_of
from unigame.methods.base import Method, Run
from unigame.methods.rows import Batch, Rows
from unigame.seeds import derive_seed
from unigame.settings.rules import Many, Number, Switch, Text, Whole, setting
from unigame.synthetic import SyntheticDataset, caption
from unigame.synthetic.dataset import CONDITIONS, SPLITS, to_pil
from unigame.synthetic.from_captions import TASK_COUNTS, new_scenes, where, write_captions
from unigame.synthetic.world import TEXTURES, Scene, Severity


@dataclass
class ExtraSettings:
    """Settings of ``ExtraRows``."""

    split: str = setting("train", Text(choices=SPLITS), "Of the synthetic world.")
    severity: str = setting("strong", Text(), "Of its degradations.")
    size: int = setting(1200, Whole(low=1), "Questions to draw from.")
    rows: int = setting(8, Whole(low=1), "Added to each step.")
    weight: float = setting(0.5, Number(low=0), "Of them, as beta is of hard samples.")
    redrawn: bool = setting(False, Switch(), "Their pictures once through the image tokenizer.")


class ExtraRows(Method):
    """Real rows where the game would add hard ones: as many, of the same weight.

    Of clean pictures: fine-tuning on as many rows. Of degraded ones: the ceiling of any
    augmentation; redrawn: of any that the model's own decoder can draw.
    """

    name = "extra"
    Settings = ExtraSettings
    losses = ("answer",)

    def setup(self, run: Run) -> None:
        """Make the questions, each seed its own."""
        super().setup(run)
        chosen, seed = self.settings, derive_seed(run.args.seed, "extra")
        self.data = SyntheticDataset(chosen.split, chosen.size, seed, severity=chosen.severity)
        generator = torch.Generator().manual_seed(seed)
        self.order: list[int] = torch.randperm(chosen.size, generator=generator).tolist()
        self.used = 0

    def before_step(self, batch: Batch, step: int) -> None:
        """Take the next ones."""
        count = self.settings.rows
        chosen = [self.data[self.order[(self.used + i) % len(self.order)]] for i in range(count)]
        self.used += count
        backbone = self.run.backbone
        images = backbone.preprocess([row["image"] for row in chosen]).to(self.run.device)
        if self.settings.redrawn:
            with torch.no_grad():
                images = backbone.render(backbone.encode_images(images)).float().clamp(0, 1)
        self.rows = Rows(
            images=images,
            questions=[row["question"] for row in chosen],
            answers=[row["answer"] for row in chosen],
            captions=[row["caption"] for row in chosen],
            ids=[row["id"] for row in chosen],
            source=[self.name] * count,
            weight=self.settings.weight,
        )

    def step_rows(self) -> list[Rows]:
        """All of them."""
        return [self.rows]

    def rows_at_most(self, args: Any) -> int:
        """Every step has as many."""
        return int(self.settings.rows)


@dataclass
class RealSettings:
    """Settings of ``RealPairs`` and ``RealScenes``."""

    texts: int = setting(600, Whole(low=1), "Captions.")
    counts: Sequence[int] = setting((1, 2, 3, 4), Many(item=Whole(low=1, high=9)), "Of objects.")
    rows: int = setting(24, Whole(low=1), "Added to each step.")
    weight: float = setting(1.0, Number(low=0), "Of them.")


class RealPairs(Method):
    """Real pictures of the very captions that others draw from, to draw: what pictures would give.

    The control of ``verify``: it has what verify has not.
    """

    name = "real_pairs"
    Settings = RealSettings
    losses = ("generation",)

    def setup(self, run: Run) -> None:
        """Render the scenes, each seed its own."""
        super().setup(run)
        chosen = self.settings
        self.scenes = scenes_of_texts(chosen.texts, run.args.seed, tuple(chosen.counts))
        self.images = images_of(self.scenes, run.backbone)
        seed = derive_seed(run.args.seed, self.name)
        self.generator = torch.Generator().manual_seed(seed)

    def step_rows(self) -> list[Rows]:
        """Some of them."""
        size = (self.settings.rows,)
        rows = torch.randint(len(self.scenes), size, generator=self.generator).tolist()
        return [
            Rows(
                images=self.images[rows],
                codes=self.run.backbone.encode_images(self.images[rows]),
                captions=[caption(self.scenes[row]) for row in rows],
                loss="generation",
                source=[self.name] * len(rows),
                weight=self.settings.weight,
            )
        ]


class RealScenes(RealPairs):
    """Real pictures of the captions with the new task's questions: the ceiling of ``imagine``."""

    name = "real_scenes"
    losses = ("answer",)

    def step_rows(self) -> list[Rows]:
        """Some questions about some of them."""
        asked = [(row, *pair) for row, scene in enumerate(self.scenes) for pair in where(scene)]
        size = (self.settings.rows,)
        picked = torch.randint(len(asked), size, generator=self.generator).tolist()
        rows, questions, answers = zip(*(asked[i] for i in picked), strict=True)
        return [
            Rows(
                images=self.images[list(rows)],
                questions=list(questions),
                answers=list(answers),
                source=[self.name] * len(rows),
                weight=self.settings.weight,
            )
        ]

    def rows_at_most(self, args: Any) -> int:
        """Every step has as many."""
        return int(self.settings.rows)


def scenes_of_texts(number: int, seed: int, counts: tuple[int, ...]) -> list[Scene]:
    """The scenes of the captions of a seed."""
    return new_scenes(number, derive_seed(seed, "texts"), counts)


DEGRADATIONS = tuple(name for name in CONDITIONS if name != "combos")
"""The conditions that change how a picture looks, and not what it shows."""


def degraded(scene: Scene, condition: str, severity: Severity) -> Scene:
    """The same objects under one of ``DEGRADATIONS``; which texture it is comes from the scene."""
    if condition == "texture":
        texture = TEXTURES[scene.seed % len(TEXTURES)]
        return replace(scene, texture=texture, severity=severity)
    return replace(scene, corruption=condition, severity=severity)  # type: ignore[arg-type]


class Task(Dataset[dict[str, Any]]):
    """The new task: where is an object?

    Args:
        scenes: how many.
        seed: of them.
        severity: of degradations of the pictures, each of the world's in turn; None: none.
    """

    def __init__(self, scenes: int, seed: int, severity: Severity | None = None) -> None:
        self.scenes = new_scenes(scenes, seed)
        if severity is not None:
            self.scenes = [
                degraded(scene, DEGRADATIONS[index % len(DEGRADATIONS)], severity)
                for index, scene in enumerate(self.scenes)
            ]
        self.rows = [
            (row, question, answer)
            for row, scene in enumerate(self.scenes)
            for question, answer in where(scene)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, question, answer = self.rows[index]
        scene = self.scenes[row]
        return {
            "image": to_pil(scene),
            "question": question,
            "answer": answer,
            "caption": caption(scene),
            "id": f"task-{row}-{index}",
        }


def counts_of(settings: Settings) -> tuple[int, ...]:
    """Objects of the scenes that captions tell of."""
    return TASK_COUNTS if settings.task_scenes else (1, 2, 3, 4)


def write_texts(file: Path, settings: Settings, seed: int) -> None:
    """The captions of a seed, with the new task's questions where there is one."""
    scenes = scenes_of_texts(settings.texts, seed, counts_of(settings))
    write_captions(file, scenes, new_task=settings.task_scenes > 0)
