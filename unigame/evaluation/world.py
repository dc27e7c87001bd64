"""The synthetic world as a benchmark: answers, groups, attacks, and pictures read by the reader.

Every score is kept per question with the picture (cluster) it belongs to, so that intervals and
paired differences come from the same lists. All sets are fixed by a seed and never trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unigame.backbones.base import Backbone
from unigame.game.attack import attacked_images, frozen_attack
from unigame.game.perturber import EpsMode
from unigame.game.semantics import FeatureSimilarity
from unigame.game.setting import ChallengeConfig, GameBatch
from unigame.synthetic import SyntheticDataset, caption, natural_groups
from unigame.synthetic.reader import read, truth
from unigame.synthetic.world import Scene

METRIC_INFO: dict[str, dict[str, str | bool]] = {
    "in_distribution": {"label": "in distribution"},
    "ood": {"label": "out of distribution"},
    "ood_no_count": {"label": "OOD without counting"},
    "g_acc": {"label": "G-Acc (4 of 4)"},
    "attack": {"label": "under a fresh attack"},
    "consistency": {"label": "consistency"},
    "text_to_image": {"label": "text to image"},
}
for _info in METRIC_INFO.values():
    _info |= {"unit": "share", "higher_is_better": True}
Reply = Callable[[Tensor, list[str]], list[str]]


@dataclass(frozen=True)
class Sizes:
    """How much is measured: questions (or groups, pictures) per metric."""

    in_distribution: int = 600
    ood: int = 1080
    groups: int = 120
    attack: int = 180
    attack_steps: int = 24
    pictures: int = 80


QUICK = Sizes(in_distribution=240, ood=360, groups=36, attack=60, attack_steps=8, pictures=24)


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

    def where(self, keep: Callable[[str], bool]) -> Scores:
        """The questions whose key passes."""
        rows = [r for r in zip(self.keys, self.clusters, self.values, strict=True) if keep(r[0])]
        scores = Scores()
        for row in rows:
            scores.add(*row)
        return scores


@dataclass(frozen=True)
class AttackSettings:
    """The evaluation's own adversary; bounds are those of the training run, the rest is fresh."""

    config: ChallengeConfig
    eps_max: float
    eps_init: float
    eps_mode: EpsMode
    lr: float = 5e-3
    batch: int = 16


def images_of(scenes: list[Scene], backbone: Backbone) -> Tensor:
    """Scenes as the 8-bit pictures a user would give, (B, 3, S, S) in [0, 1]."""
    from unigame.synthetic.dataset import to_pil

    return backbone.preprocess([to_pil(s) for s in scenes]).to(backbone.device)


def evaluate(
    backbone: Backbone,
    sizes: Sizes,
    attack: AttackSettings,
    *,
    seed: int = 0,
    report: Callable[[str], None] = lambda name: None,
) -> dict[str, Scores]:
    """Every metric of ``METRIC_INFO`` (and ``ood_*`` per condition) for one model.

    Args:
        backbone: the model; its mode is restored afterwards.
        sizes: how many questions of each kind.
        attack: the fresh adversary's settings.
        seed: of the test sets, the adversary and the drawing.
        report: called with a metric's name before it is measured (progress).
    """
    training = backbone.training
    backbone.eval()
    try:
        report("in_distribution")
        results = {"in_distribution": accuracy(backbone, "test", sizes.in_distribution, seed)}
        report("ood")
        results["ood"] = accuracy(backbone, "ood", sizes.ood, seed)
        results["ood_no_count"] = results["ood"].where(lambda key: "/count/" not in key)
        report("g_acc")
        results["g_acc"] = group_accuracy(backbone, sizes.groups, seed)
        report("attack")
        results["attack"] = attacked_accuracy(backbone, sizes, attack, seed)
        report("consistency")
        results["consistency"] = consistency(backbone, sizes.pictures, seed)
        report("text_to_image")
        results["text_to_image"] = text_to_image(backbone, sizes.pictures, seed)
    finally:
        backbone.train(training)
    return results


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


def group_accuracy(backbone: Backbone, number: int, seed: int) -> Scores:
    """NaturalBench's G-Acc: a group counts when all four of its answers are right."""
    groups = natural_groups(number, seed)
    scenes = [s for g in groups for s in g.scenes for _ in (0, 1)]
    said = replies(
        backbone,
        images_of(scenes, backbone),
        [q for g in groups for _ in (0, 1) for q in g.questions],
    )
    scores, expected = Scores(), ["yes", "no", "no", "yes"]
    for i, group in enumerate(groups):
        scores.add(f"{group.kind}/{i}", str(i), said[4 * i : 4 * i + 4] == expected)
    return scores


def attacked_accuracy(
    backbone: Backbone, sizes: Sizes, attack: AttackSettings, seed: int
) -> Scores:
    """Accuracy on test pictures redrawn by a perturber trained, just now, against this model.

    Only pictures that the reader still reads as the true scene are asked about: elsewhere the
    adversary changed the content and the true answer with it. Those are counted in ``skipped``.
    """
    bounds = {"eps_max": attack.eps_max, "eps_init": attack.eps_init, "eps_mode": attack.eps_mode}
    practice = SyntheticDataset("validation", 4 * attack.batch, seed + 500)
    adversary = frozen_attack(
        backbone,
        [
            _batch(backbone, practice, s, attack.batch)
            for s in range(0, len(practice), attack.batch)
        ],
        steps=sizes.attack_steps,
        lr=attack.lr,
        config=attack.config,
        seed=seed + 501,
        scorer=FeatureSimilarity(backbone.image_features),
        **bounds,  # type: ignore[arg-type]
    )
    data, scores = SyntheticDataset("test", sizes.attack, seed + 502), Scores()
    for start in range(0, len(data), 60):
        batch = _batch(backbone, data, start, 60)
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


def _batch(backbone: Backbone, data: SyntheticDataset, start: int, count: int) -> GameBatch:
    rows = data.rows[start : start + count]
    scenes = [data.scenes[row[0]] for row in rows]
    return GameBatch(
        images=images_of(scenes, backbone),
        questions=[row[1] for row in rows],
        answers=[row[2] for row in rows],
        prompts=[caption(s) for s in scenes],
    )


def _agreement(found: set[tuple[int, str, str]], expected: set[tuple[int, str, str]]) -> float:
    """Objects found and true over objects found or true: inventing costs as much as losing."""
    return len(found & expected) / max(len(found | expected), 1)


def consistency(backbone: Backbone, pictures: int, seed: int) -> Scores:
    """Caption the picture, draw the caption, read the drawing: does it show what was there?"""
    data = SyntheticDataset("test", pictures, seed + 600, questions_per_scene=1)
    captions = backbone.caption(images_of(data.scenes, backbone), max_new_tokens=20)  # type: ignore[operator]
    return _drawn(backbone, captions, data.scenes, seed)


def text_to_image(backbone: Backbone, pictures: int, seed: int) -> Scores:
    """Draw true captions and read the drawings."""
    data = SyntheticDataset("test", pictures, seed + 700, questions_per_scene=1)
    return _drawn(backbone, [caption(s) for s in data.scenes], data.scenes, seed)


def _drawn(backbone: Backbone, prompts: list[str], scenes: list[Scene], seed: int) -> Scores:
    images = backbone.generate(prompts, seed=seed, guidance_scale=1.0, temperature=0.7)
    scores = Scores()
    for i, picture in enumerate(images.permute(0, 2, 3, 1).float().cpu().numpy()):
        scores.add(str(i), str(i), _agreement(read(picture), truth(scenes[i])))
    return scores
