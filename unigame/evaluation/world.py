"""Exact answers on the synthetic world, clean and under a fresh attack.

Every score is kept per question with the picture (cluster) it belongs to, so that intervals and
paired differences come from the same lists. All sets are fixed by a seed and never trained on. The
benchmarks themselves, on the same world, are in ``miniature.py``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from unigame.backbones.base import Backbone
from unigame.game.attack import attacked_images, frozen_attack
from unigame.game.perturber import EpsMode
from unigame.game.semantics import FeatureSimilarity
from unigame.game.setting import ChallengeConfig, GameBatch
from unigame.reports.metrics import Metric, Unit, to_json
from unigame.seeds import derive_seed
from unigame.synthetic import SyntheticDataset, caption
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


@dataclass(frozen=True)
class AttackSettings:
    """The evaluation's own adversary; bounds are those of the training run, the rest is fresh.

    ``questions`` are attacked, after ``steps`` updates of the adversary on other pictures.
    """

    config: ChallengeConfig
    eps_max: float
    eps_init: float
    eps_mode: EpsMode
    lr: float = 5e-3
    batch: int = 16
    questions: int = 180
    steps: int = 24


def images_of(scenes: list[Scene], backbone: Backbone) -> Tensor:
    """Scenes as the 8-bit pictures a user would give, (B, 3, S, S) in [0, 1]."""
    from unigame.synthetic.dataset import to_pil

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


def attacked_accuracy(backbone: Backbone, attack: AttackSettings, seed: int) -> Scores:
    """Accuracy on test pictures redrawn by a perturber trained, just now, against this model.

    Only pictures that the reader still reads as the true scene are asked about: elsewhere the
    adversary changed the content and the true answer with it. Those are counted in ``skipped``.
    """
    bounds = {"eps_max": attack.eps_max, "eps_init": attack.eps_init, "eps_mode": attack.eps_mode}
    practice = SyntheticDataset(
        "validation", 4 * attack.batch, derive_seed(seed, "attack", "practice")
    )
    adversary = frozen_attack(
        backbone,
        [
            batch_of(backbone, practice, s, attack.batch)
            for s in range(0, len(practice), attack.batch)
        ],
        steps=attack.steps,
        lr=attack.lr,
        config=attack.config,
        seed=derive_seed(seed, "attack", "adversary"),
        scorer=FeatureSimilarity(backbone.image_features),
        **bounds,  # type: ignore[arg-type]
    )
    data, scores = SyntheticDataset("test", attack.questions, derive_seed(seed, "attack")), Scores()
    for start in range(0, len(data), 60):
        batch = batch_of(backbone, data, start, 60)
        images = attacked_images(backbone, adversary, batch, attack.config)
        said = replies(backbone, images, list(batch.questions))
        pictures = images.permute(0, 2, 3, 1).float().cpu().numpy()
        for i, picture in enumerate(pictures):
            scene, _, answer, kind, _ = data.rows[start + i]
            if read(picture) == truth(data.scenes[scene]):
                scores.add(f"{kind}/{start + i}", str(scene), said[i] == answer)
            else:
                scores.skipped += 1
    return scores


def attack_entry(backbone: Backbone, attack: AttackSettings, seed: int) -> dict[str, Any] | None:
    """``attacked_accuracy`` as a part of a record; None where no picture kept its content."""
    training = backbone.training
    backbone.eval()
    try:
        scores = attacked_accuracy(backbone, attack, seed)
    finally:
        backbone.train(training)
    if not scores.values:
        return None
    rows = zip(scores.keys, scores.values, scores.clusters, strict=True)
    units = tuple(Unit(key, (value,), cluster) for key, value, cluster in rows)
    return {
        "title": "under a fresh attack",
        "dataset": {"id": "synthetic test questions", "fingerprint": f"seed {seed}"},
        "variant": {"adversary": asdict(attack)},
        "counts": {
            "items": attack.questions,
            "scored": len(scores.values),
            "skipped": {"the attack changed what the picture shows": scores.skipped},
        },
        "metrics": {
            "accuracy": {**to_json(Metric("accuracy", "accuracy", units)), "headline": True}
        },
    }


def batch_of(backbone: Backbone, data: SyntheticDataset, start: int, count: int) -> GameBatch:
    """``count`` questions from ``start`` on, with their pictures, for the game's functions."""
    rows = data.rows[start : start + count]
    scenes = [data.scenes[row[0]] for row in rows]
    return GameBatch(
        images=images_of(scenes, backbone),
        questions=[row[1] for row in rows],
        answers=[row[2] for row in rows],
        prompts=[caption(s) for s in scenes],
    )
