"""Exact answers on the synthetic world, clean and under a fresh attack.

Every score is kept per question with the picture (cluster) it belongs to, so that intervals and
paired differences come from the same lists. All sets are fixed by a seed and never trained on. The
benchmarks themselves, on the same world, are in ``miniature.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unigame.backbones.base import Backbone
from unigame.evaluation.attacks.adversary import Adversary, practice_of
from unigame.evaluation.attacks.robustness import RobustnessConfig, measure_robustness
from unigame.evaluation.examples import Example
from unigame.evaluation.record import metrics_json
from unigame.methods.rows import Rows
from unigame.seeds import derive_seed
from unigame.synthetic import SyntheticDataset, caption
from unigame.synthetic.dataset import to_pil
from unigame.synthetic.reader import read, truth
from unigame.synthetic.world import Scene


@dataclass
class Scores:
    """One figure per question, the cluster of each, and what part of the set was left out.

    ``keys`` name the questions, so that two arms can be paired even where some were left out.
    """

    values: list[float] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    skipped: int = 0

    def add(self, key: str, cluster: str, value: float) -> None:
        """One more question."""
        self.keys.append(key)
        self.clusters.append(cluster)
        self.values.append(float(value))


def images_of(scenes: list[Scene], backbone: Backbone) -> Tensor:
    """Scenes as the 8-bit pictures a user would give, (B, 3, S, S) in [0, 1]."""
    return backbone.preprocess([to_pil(s) for s in scenes]).to(backbone.device)


def replies(
    backbone: Backbone, images: Tensor, questions: list[str], batch: int = 120
) -> list[str]:
    """Greedy one-word answers, in order."""
    said = []
    for start in range(0, len(questions), batch):
        rows = slice(start, start + batch)
        said += backbone.answer(images[rows], questions[rows], max_new_tokens=3)
    return [word.strip().lower() for word in said]


def accuracy(backbone: Backbone, split: str, size: int, seed: int) -> Scores:
    """Share of one-word answers that are exactly right; keys are ``condition/kind/index``."""
    data = SyntheticDataset(split, size, seed)
    scenes = images_of(data.scenes, backbone)
    index = torch.tensor([row[0] for row in data.rows])
    said = replies(backbone, scenes[index], [row[1] for row in data.rows])
    scores = Scores()
    for i, (scene, _, answer, kind, condition) in enumerate(data.rows):
        scores.add(f"{condition}/{kind}/{i}", str(scene), said[i] == answer)
    return scores


class ReaderCheck:
    """Content is kept where the analytic reader reads the same objects.

    Args:
        scenes: the true scene of each example, by its id; an example without one is compared with
            what the reader reads in its clean picture.
    """

    name = "the synthetic reader, same objects"

    def __init__(self, scenes: Mapping[str, Scene] | None = None) -> None:
        self.scenes = dict(scenes or {})

    def kept(
        self, drawn_B3SS: Tensor, clean_B3SS: Tensor, examples: Sequence[Example]
    ) -> list[bool]:
        """See ``ContentCheck``."""
        drawn, clean = (
            images.permute(0, 2, 3, 1).float().cpu().numpy() for images in (drawn_B3SS, clean_B3SS)
        )
        expected = (
            truth(self.scenes[example.id]) if example.id in self.scenes else read(picture)
            for example, picture in zip(examples, clean, strict=True)
        )
        return [read(picture) == wanted for picture, wanted in zip(drawn, expected, strict=True)]


def attack_entry(
    backbone: Backbone, adversary: Adversary, questions: int, seed: int
) -> dict[str, Any] | None:
    """Accuracy under the evaluation's adversary, and redrawn without it, as a part of a record.

    It practises on scenes of the validation split and attacks questions of the test split; a reply
    counts if it is exactly the answer.

    Args:
        backbone: the model; left as it is.
        adversary: its settings.
        questions: how many are attacked.
        seed: of the data and of the adversary.

    Returns:
        The entry; None where no attacked picture kept its content.
    """
    practice, _ = _examples("validation", adversary.practice, derive_seed(seed, "practice"), 1)
    examples, scenes = _examples("test", questions, derive_seed(seed, "attack"), 6)
    found = measure_robustness(
        backbone,
        examples,
        RobustnessConfig(adversary=adversary, pgd=(), corruptions=(), max_new_tokens=3),
        practice=practice_of(practice),
        check=ReaderCheck(scenes),
        score=lambda reply, example: float(reply.strip().lower() == example.answer),
    )
    attacked = found.metrics.get("adversary")
    if attacked is None:
        return None
    others = [metric for name, metric in found.metrics.items() if name in ("redrawn", "clean")]
    shown = [replace(attacked, name="accuracy", label="accuracy"), *others]
    return {
        "title": "under a fresh attack",
        "dataset": {"id": "synthetic test questions", "fingerprint": _fingerprint(examples)},
        "variant": {"adversary": asdict(adversary)},
        "counts": {
            "items": questions,
            "scored": len(attacked.units),
            "skipped": {"the attack changed what the picture shows": found.changed["adversary"]},
        },
        "metrics": metrics_json(shown),
    }


def _fingerprint(examples: Sequence[Example]) -> str:
    lines = "\n".join(f"{e.id} {e.question} {e.answer} {e.caption}" for e in examples)
    return hashlib.sha256(lines.encode()).hexdigest()


def _examples(
    split: str, size: int, seed: int, per_scene: int
) -> tuple[list[Example], dict[str, Scene]]:
    """Questions of the world, and the scene of each by its id."""
    data = SyntheticDataset(split, size, seed, questions_per_scene=per_scene)
    examples, scenes = [], {}
    for number, (scene, question, answer, kind, _) in enumerate(data.rows):
        id = f"{split}/{kind}/{number}"
        drawn = partial(to_pil, data.scenes[scene])
        about = caption(data.scenes[scene])
        examples.append(Example(id, drawn, question, answer, (), about, f"{split} {scene}"))
        scenes[id] = data.scenes[scene]
    return examples, scenes


def batch_of(backbone: Backbone, data: SyntheticDataset, start: int, count: int) -> Rows:
    """``count`` questions from ``start`` on, with their pictures, for the game's functions."""
    rows = data.rows[start : start + count]
    scenes = [data.scenes[row[0]] for row in rows]
    return Rows(
        images=images_of(scenes, backbone),
        questions=[row[1] for row in rows],
        answers=[row[2] for row in rows],
        captions=[caption(s) for s in scenes],
    )
