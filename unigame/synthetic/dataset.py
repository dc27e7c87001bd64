"""The synthetic world as datasets: splits, out-of-distribution conditions, groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from unigame.errors import UserError

from .questions import KINDS, ask
from .world import TEXTURES, Scene, Severity, caption, random_scene, render

SPLITS = ("train", "validation", "test", "ood", "ood_validation", "augmented")
CONDITIONS = ("combos", "texture", "noise", "contrast", "occlusion", "blur")


def scene_of(condition: str, rng: np.random.Generator, severity: Severity = "far") -> Scene:
    """A scene under one out-of-distribution condition (or ``clean``)."""
    if condition == "clean":
        return random_scene(rng)
    if condition == "combos":
        return random_scene(rng, combinations="held_out")
    if condition == "texture":
        return random_scene(rng, texture=str(rng.choice(TEXTURES)), severity=severity)
    return random_scene(rng, corruption=condition, severity=severity)  # type: ignore[arg-type]


class SyntheticDataset(Dataset[dict[str, Any]]):
    """Questions about scenes, in the record form that the readers of real data give.

    Splits: ``train``, ``validation`` and ``test`` are clean scenes of seen combinations; ``ood``
    and ``ood_validation`` go round six conditions that training never shows; ``augmented`` is
    training data *with* five of them (not the held-out combinations), for the ceiling test only.

    Args:
        split: one of ``SPLITS``.
        size: number of questions.
        seed: another seed is another sample; splits never share scenes.
        questions_per_scene: consecutive items that ask about one scene, the six kinds in turn.
        severity: how strong the degradations of the out-of-distribution conditions are.

    Each item is ``{"image", "question", "answer", "caption", "id", "kind", "condition", "scene"}``.

    Raises:
        UserError: an unknown split or a size below one.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 1200,
        seed: int = 0,
        questions_per_scene: int = 6,
        severity: Severity = "far",
    ) -> None:
        if split not in SPLITS:
            raise UserError(f"unknown synthetic split {split!r}; choose one of {', '.join(SPLITS)}")
        if size < 1:
            raise UserError(f"synthetic size is {size}; ask for at least one question")
        self.split, self.size, self.per_scene = split, size, questions_per_scene
        rng = np.random.default_rng([SPLITS.index(split), seed, 20])
        cycle = {
            "ood": CONDITIONS,
            "ood_validation": CONDITIONS,
            "augmented": ("clean", *CONDITIONS[1:]),
        }.get(split, ("clean",))
        self.scenes: list[Scene] = []
        self.rows: list[tuple[int, str, str, str, str]] = []
        while len(self.rows) < size:
            index = len(self.scenes)
            condition = cycle[index % len(cycle)]
            scene = scene_of(condition, rng, severity)
            self.scenes.append(scene)
            for turn in range(questions_per_scene):
                kind = KINDS[(turn + index * questions_per_scene) % len(KINDS)]
                asked = ask(scene, kind, rng)
                if asked is not None:
                    self.rows.append((index, *asked, kind, condition))
        del self.rows[size:]

    def __len__(self) -> int:
        return self.size

    def iter_texts(self) -> Iterator[dict[str, str]]:
        """The texts and the id of every row, in order; nothing is rendered."""
        return (self._texts(index) for index in range(self.size))

    def _texts(self, index: int) -> dict[str, str]:
        scene_index, question, answer, _, _ = self.rows[index]
        return {
            "question": question,
            "answer": answer,
            "caption": caption(self.scenes[scene_index]),
            "id": f"{self.split}-{scene_index}-{index}",
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene_index, _, _, kind, condition = self.rows[index]
        return {
            "image": to_pil(self.scenes[scene_index]),
            **self._texts(index),
            "kind": kind,
            "condition": condition,
            "scene": scene_index,
        }


def to_pil(scene: Scene) -> Image.Image:
    """The scene as an 8-bit picture."""
    return Image.fromarray((render(scene) * 255).round().astype(np.uint8))
