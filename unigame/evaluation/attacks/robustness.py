"""Accuracy when the pictures are made worse: a fresh adversary, PGD, common corruptions.

    clean         the pictures as they are
    redrawn       drawn again from the model's own states, unperturbed: what redrawing alone costs
    adversary     drawn again under a perturber trained, just now, against this model
    pgd_8         the worst found within 8/255 of every pixel value; also pgd_2 and pgd_4
    noise_3       a corruption at a severity; ``noise`` is the mean over its five severities, and
                  ``corruptions`` the mean over all of them

All pictures are made at the size that the model reads and rounded to 8 bits, so each is one that a
file could hold. Everything random depends on the seed and the item's id: two models see the same
noise, and their records can be paired. The adversary and PGD are made against each model anew. What
the adversary practises on is never measured, and ``redrawn`` and ``adversary`` are taken over the
pictures that still show what the clean ones do (``adversary.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unigame.backbones.base import Backbone
from unigame.data import CorruptImage, SkipReport
from unigame.errors import UserError
from unigame.evaluation.attacks.adversary import (
    Adversary,
    ContentCheck,
    Practice,
    own_features_check,
    set_aside,
)
from unigame.evaluation.attacks.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from unigame.evaluation.attacks.fresh import attacked_images
from unigame.evaluation.attacks.pgd import PGDConfig, pgd
from unigame.evaluation.examples import Example, Score, vqa_match
from unigame.methods.rows import Rows
from unigame.methods.selfplay import NoPerturber
from unigame.methods.selfplay.perturber import PerturberBase
from unigame.methods.semantics import FeatureSimilarity
from unigame.reports.metrics import Metric, Unit

ATTACKS = ("adversary", "pgd", "corruptions")


@dataclass(frozen=True)
class RobustnessConfig:
    """What is measured. ``as_dict`` goes into the record: unlike settings are not compared.

    Attributes:
        adversary: the decoder-constrained attack, with its control ``redrawn``; None: left out.
        pgd: attacks on pixels, one metric each.
        corruptions: kinds, each at five severities.
        max_new_tokens: longest answer, in tokens.
        batch_size: pictures at once; PGD needs memory for a backward pass over them.
    """

    adversary: Adversary | None = Adversary()
    pgd: tuple[PGDConfig, ...] = tuple(PGDConfig(eps=n / 255) for n in (2, 4, 8))
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    max_new_tokens: int = 16
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                known = ", ".join(CORRUPTIONS)
                raise UserError(f"unknown corruption {name!r}; choose from {known}")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; give at least 1")
        names = [config.name for config in self.pgd]
        if len(set(names)) < len(names):
            raise UserError(f"two PGD attacks have the same bound: {', '.join(names)}")

    def only(self, attacks: Sequence[str]) -> RobustnessConfig:
        """These settings cut down to some of ``ATTACKS``.

        Raises:
            UserError: none, or an unknown attack.
        """
        unknown = [name for name in attacks if name not in ATTACKS]
        if unknown or not attacks:
            what = f"unknown attack {unknown[0]!r}" if unknown else "no attack is named"
            raise UserError(f"{what}; choose from {', '.join(ATTACKS)}")
        return replace(
            self,
            adversary=self.adversary if "adversary" in attacks else None,
            pgd=self.pgd if "pgd" in attacks else (),
            corruptions=self.corruptions if "corruptions" in attacks else (),
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; the batch size changes no picture and is left out."""
        return {
            "adversary": asdict(self.adversary) if self.adversary else None,
            "pgd": {config.name: asdict(config) for config in self.pgd},
            "corruptions": list(self.corruptions),
            "max_new_tokens": self.max_new_tokens,
        }


# ---- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """Examples whose pictures could be read, and the pictures, (B, 3, S, S) on the device."""

    examples: Sequence[Example]
    images: Tensor

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples]

    @property
    def questions(self) -> list[str]:
        return [example.question for example in self.examples]

    @property
    def answers(self) -> list[str]:
        return [example.answer for example in self.examples]

    def for_game(self) -> Rows:
        """The same as the game's attack takes it."""
        prompts = [example.caption or example.question for example in self.examples]
        return Rows(self.images, self.questions, self.answers, prompts)


@dataclass
class _Scores:
    """Units of each condition, in the order in which conditions are first met."""

    labels: dict[str, str] = field(default_factory=dict)
    units: dict[str, list[Unit]] = field(default_factory=dict)

    def add(self, name: str, label: str, examples: Sequence[Example], values: list[float]) -> None:
        """One value for each example."""
        self.labels[name] = label
        self.units.setdefault(name, []).extend(
            Unit(example.id, (float(value),), example.cluster)
            for example, value in zip(examples, values, strict=True)
        )

    def metrics(self) -> dict[str, Metric]:
        """One metric for each condition of which a picture counts."""
        return {
            name: Metric(name, self.labels[name], tuple(units), scale=_SCALES.get(name, 100.0))
            for name, units in self.units.items()
            if units
        }


_SIMILARITY = "adversary_similarity"
_SCALES = {_SIMILARITY: 1.0}


@dataclass(frozen=True)
class _Attacker:
    """The adversary after its practice, and what judges its pictures."""

    perturber: PerturberBase
    check: ContentCheck
    redraw: Callable[..., Tensor]
    strengths: tuple[float, ...]

    def redrawn(self, batch: _Batch) -> tuple[Tensor, list[bool]]:
        """Drawn again, unperturbed, as an 8-bit file would hold them; which kept their content."""
        images = _rounded(self.redraw(NoPerturber(), batch=batch.for_game()))
        return images, self.check.kept(images, batch.images, batch.examples)

    def attacked(self, batch: _Batch) -> tuple[Tensor, list[bool]]:
        """Likewise under the perturber: each at the largest strength that keeps its content.

        Where none does, at the largest of all.
        """
        rows = batch.for_game()
        images, kept = None, [False] * len(batch.examples)
        for strength in self.strengths:
            drawn = _rounded(self.redraw(self.perturber, batch=rows, strength=strength))
            images = drawn if images is None else images
            keeps = self.check.kept(drawn, batch.images, batch.examples)
            for row, (before, now) in enumerate(zip(kept, keeps, strict=True)):
                if now and not before:
                    images[row] = drawn[row]
            kept = [before or now for before, now in zip(kept, keeps, strict=True)]
            if all(kept):
                break
        assert images is not None
        return images, kept


@dataclass
class Measured:
    """What ``measure_robustness`` found.

    Attributes:
        metrics: of each condition, ``clean`` first.
        practised: questions that the adversary practised on.
        practice_skipped: questions chosen for that whose picture cannot be read, by reason.
        changed: of ``redrawn`` and ``adversary``, pictures that no longer show what they did.
        check: what said so, by name.
        floor: its least similarity, where it has one.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    practised: int = 0
    practice_skipped: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    check: str = ""
    floor: float | None = None


def measure_robustness(
    backbone: Backbone,
    examples: Sequence[Example],
    config: RobustnessConfig | None = None,
    *,
    practice: Practice | None = None,
    check: ContentCheck | None = None,
    score: Score = vqa_match,
    skips: SkipReport | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Accuracy under each condition of the module docstring, in percent; ``clean`` comes first.

    ``redrawn`` and ``adversary`` are over the pictures that kept their content, and are left out
    where none did. ``adversary_similarity`` is the mean cosine over all of them, in the model's own
    vision features, between what the adversary drew and the picture.

    Args:
        backbone: the model; its weights, gradients and mode are left as they are.
        examples: from ``from_records`` or ``from_items``.
        config: what to measure; None: everything.
        practice: what the adversary practises on; questions about the same pictures are not
            measured, under no condition. None: some of the examples (``set_aside``). Choose it from
            the whole data set where ``examples`` are a part, or its choice depends on the part.
        check: says which redrawn pictures kept their content; None: the model's own features
            (``own_features_check``).
        score: judges a reply.
        skips: where pictures that are to be measured and cannot be read are counted.
        report: called with the number of examples done, after each batch.

    Raises:
        UserError: no example, ids that occur twice, an adversary on a model that cannot draw or
            with no picture to practise on, or no picture that can be read.
    """
    config = config or RobustnessConfig()
    if config.adversary is not None:
        backbone.require_drawing()
    skips = skips if skips is not None else SkipReport()
    if len({example.id for example in examples}) < max(1, len(examples)):
        raise UserError(
            f"{len(examples)} examples: robustness needs at least one with one picture, a question "
            "and an answer, and every id only once"
        )
    scores, found, training = _Scores(), Measured(), backbone.training
    backbone.eval()
    try:
        attacker = None
        if config.adversary is not None:
            practice = practice or set_aside(examples, config.adversary.practice)
            examples = practice.others(examples)
            unread = SkipReport()
            attacker = _practised(backbone, practice, config, check, unread)
            found.check, found.practice_skipped = attacker.check.name, unread.counts()
            found.practised = len(practice.examples) - len(unread.skipped)
            found.floor = getattr(attacker.check, "floor", None)
        for start in range(0, len(examples), config.batch_size):
            chosen = examples[start : start + config.batch_size]
            batch = _load(backbone, chosen, skips)
            if batch is not None:
                _measure_batch(backbone, batch, config, attacker, score, scores, found)
            report(start + len(chosen))
    finally:
        backbone.train(training)
    if not scores.units:
        raise UserError(f"no picture could be read: {skips.summary()}; check the image folder")
    found.metrics = _with_means(scores.metrics(), config)
    return found


def _measure_batch(
    backbone: Backbone,
    batch: _Batch,
    config: RobustnessConfig,
    attacker: _Attacker | None,
    score: Score,
    scores: _Scores,
    found: Measured,
) -> None:
    for name, label, images, kept in _conditions(backbone, batch, config, attacker):
        replies = backbone.answer(images, batch.questions, max_new_tokens=config.max_new_tokens)
        values = [score(reply, e) for reply, e in zip(replies, batch.examples, strict=True)]
        if name in _REDRAWN:
            found.changed[name] = found.changed.get(name, 0) + kept.count(False)
        examples = [e for e, counts in zip(batch.examples, kept, strict=True) if counts]
        scores.add(name, label, examples, [v for v, k in zip(values, kept, strict=True) if k])
        if name == "adversary":
            with torch.no_grad():
                similar_B = FeatureSimilarity(backbone.image_features)(images, batch.images, [])
            label = "similarity under the adversary"
            scores.add(_SIMILARITY, label, batch.examples, similar_B.tolist())


_REDRAWN = ("redrawn", "adversary")


def _conditions(
    backbone: Backbone, batch: _Batch, config: RobustnessConfig, attacker: _Attacker | None
) -> Iterator[tuple[str, str, Tensor, list[bool]]]:
    """Name, label and pictures of each condition, and which of them count.

    Only one set is in memory at a time.
    """
    every = [True] * len(batch.examples)
    yield "clean", "clean", batch.images, every
    if attacker is not None:
        yield "redrawn", "redrawn", *attacker.redrawn(batch)
        yield "adversary", "fresh adversary", *attacker.attacked(batch)
    for attack in config.pgd:
        images = pgd(backbone, batch.images, batch.questions, batch.answers, attack, batch.ids)
        yield attack.name, f"PGD {attack.eps * 255:.4g}/255", images, every
    for kind in config.corruptions:
        for severity in SEVERITIES:
            yield (
                f"{kind}_{severity}",
                f"{kind}, severity {severity}",
                _corrupted(batch, kind, severity),
                every,
            )


def _with_means(metrics: dict[str, Metric], config: RobustnessConfig) -> dict[str, Metric]:
    """Put the means over severities, and over all corruptions, before their parts."""
    means: dict[str, Metric] = {}
    for kinds, name, label in (
        (config.corruptions, "corruptions", "corruptions, mean"),
        *(((kind,), kind, f"{kind}, mean of severities") for kind in config.corruptions),
    ):
        units = tuple(
            Unit(unit.id, unit.counts, unit.cluster, f"{kind}_{severity}")
            for kind in kinds
            for severity in SEVERITIES
            for unit in metrics[f"{kind}_{severity}"].units
        )
        if units:
            means[name] = Metric(name, label, units, per_group=True)
    parts = {f"{kind}_{severity}" for kind in config.corruptions for severity in SEVERITIES}
    whole = {name: metric for name, metric in metrics.items() if name not in parts}
    return whole | means | {name: metrics[name] for name in metrics if name in parts}


def _practised(
    backbone: Backbone,
    practice: Practice,
    config: RobustnessConfig,
    check: ContentCheck | None,
    skips: SkipReport,
) -> _Attacker:
    attack, size, chosen = config.adversary, config.batch_size, practice.examples
    assert attack is not None
    loaded = (_load(backbone, chosen[i : i + size], skips) for i in range(0, len(chosen), size))
    batches = [batch.for_game() for batch in loaded if batch is not None]
    if not batches:
        raise UserError(
            f"no picture to practise on could be read: {skips.summary()}; check the image folder"
        )
    perturber = attack.trained(backbone, batches)
    redraw = partial(attacked_images, backbone, config=attack.config)
    if check is None:
        check = own_features_check(
            backbone, batches, lambda batch: _rounded(redraw(NoPerturber(), batch=batch))
        )
    return _Attacker(perturber, check, redraw, attack.strengths)


def _load(backbone: Backbone, examples: Sequence[Example], skips: SkipReport) -> _Batch | None:
    """The batch without pictures that cannot be read; None where none is left."""
    read, pictures = [], []
    for example in examples:
        try:
            pictures.append(example.picture())
        except CorruptImage as error:
            skips.add(example.id, error.reason)
        else:
            read.append(example)
    if not read:
        return None
    return _Batch(read, _rounded(backbone.preprocess(pictures).to(backbone.device)))


def _rounded(images: Tensor) -> Tensor:
    """Images as an 8-bit file would hold them."""
    return (images.detach().float() * 255).round() / 255


def _corrupted(batch: _Batch, kind: str, severity: int) -> Tensor:
    pixels = (batch.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    made = [corrupt(p, kind, severity, id) for p, id in zip(pixels, batch.ids, strict=True)]
    images = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
    return images.to(batch.images.device).float() / 255
