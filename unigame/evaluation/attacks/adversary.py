"""The evaluation's own adversary: what it practises on, and which of its pictures count.

One implementation, for ``unigame evaluate --robustness`` and for the demo:

1. A fresh perturber is trained, just now, against the model: nothing of a training run is used.
2. It practises on pictures that are not measured. Which ones depends on the data set alone, so a
   smaller ``--limit`` measures less and measures the same thing.
3. An attacked picture is asked about only if it still shows what it did. Where the content changed,
   the true answer changed with it, and a "wrong" reply may be right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from unigame.backbones.base import Backbone
from unigame.data.pictures import content_key
from unigame.errors import UserError
from unigame.evaluation.attacks.fresh import frozen_attack
from unigame.evaluation.examples import Example
from unigame.methods.rows import Rows
from unigame.methods.selfplay.perturber import EpsMode, PerturberBase, Scope
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.methods.semantics import FeatureSimilarity, SimilarityScorer

LABEL_WEIGHT, START = 10.0, 2 / 3
"""It pays much for changing what a picture shows, and starts near the bound: with a weight of 0.5
there, five in six of its pictures of the synthetic world show something else."""

WEAKER = (1.0, 0.75, 0.5, 0.35, 0.25)
"""Where one direction is all tokens' the bounds of training are large, and pictures differ in how
much of them they bear."""

MOST_SET_ASIDE = 4  # at most a quarter of the pictures is practised on and not measured
KEPT_BY_REDRAWING = 0.05  # quantile of the plain redrawings' similarity that is the floor


@dataclass(frozen=True)
class Adversary:
    """The fresh perturber; bounds and challenge are usually those of the training run.

    Attributes:
        config: of the challenge.
        steps: updates of the perturber.
        lr: of its AdamW.
        eps_max: bound of the perturbation.
        eps_init: its length at the start.
        eps_mode: ``"absolute"`` or ``"relative"``.
        scope: a direction for each token, or one that all of a picture share.
        practice: questions it is trained on, which are not measured.
        seed: of its weights and draws.
        strengths: parts of its perturbation, the largest first. Each picture is drawn with the
            first at which it still shows what it did: a bound at which some pictures lose their
            content measures nothing on them, and a bound that suits all is too small for most.
    """

    config: SelfPlaySettings = field(
        default_factory=lambda: SelfPlaySettings(label_weight=LABEL_WEIGHT)
    )
    steps: int = 24
    lr: float = 5e-3
    eps_max: float = 0.02
    eps_init: float = START * 0.02
    eps_mode: EpsMode = "absolute"
    scope: Scope = "token"
    practice: int = 64
    seed: int = 0
    strengths: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        falling = list(self.strengths) == sorted(set(self.strengths), reverse=True)
        if not self.strengths or not falling or self.strengths[-1] <= 0:
            raise UserError(
                f"adversary strengths={self.strengths}: give positive numbers, the largest first"
            )

    def trained(self, backbone: Backbone, batches: Sequence[Rows]) -> PerturberBase:
        """The perturber, after its practice; the model is left as it is."""
        return frozen_attack(
            backbone,
            batches,
            steps=self.steps,
            lr=self.lr,
            config=self.config,
            seed=self.seed,
            eps_max=self.eps_max,
            eps_init=self.eps_init,
            eps_mode=self.eps_mode,
            scope=self.scope,
            scorer=FeatureSimilarity(backbone.image_features) if self.config.label_weight else None,
        )


_OF_A_RUN = (
    *("gradient_candidates", "anchor", "temperature", "lambda_norm", "l2", "tv"),
    *("clip_weight", "clip_floor", "anchor_mode", "anchor_width"),
)


def adversary_for(settings: Any) -> Adversary:
    """The adversary with the bounds and the drawing of a training run.

    A model should be attacked as hard as it was trained: bounds that suit one model change nothing
    in the pictures of another. What it pays for changing the content, and where it starts, are the
    evaluation's own, and the same for every run.

    Args:
        settings: of the game: ``methods.selfplay``'s, or any object with their names.

    Raises:
        UserError: the run perturbs tokens, where no picture is drawn.
    """
    if settings.perturb_space != "decoder":
        raise UserError(
            f"perturb_space={settings.perturb_space!r}: an attack in token space draws no picture; "
            "take the settings of a run with perturb_space='decoder'"
        )
    # One picture a question, and the same in every run: the argmax.
    challenge = SelfPlaySettings(
        hard_quantile=settings.hard_quantile,
        label_weight=LABEL_WEIGHT,
        # The floor of another similarity is none of this one's, which would never reach below it.
        label_floor=settings.label_floor if settings.label_similarity == "cosine" else 1.0,
        **{name: getattr(settings, name) for name in _OF_A_RUN},
    )
    one_for_each = settings.perturber_scope == "token"
    return Adversary(
        challenge,
        eps_max=settings.eps_max,
        eps_init=START * settings.eps_max,
        eps_mode=settings.eps_mode,
        scope="token" if one_for_each else "shared",
        strengths=(1.0,) if one_for_each else WEAKER,
    )


# ---- what it practises on ------------------------------------------------------------------------


@dataclass(frozen=True)
class Practice:
    """Questions to practise on, and the pictures that must therefore not be measured."""

    examples: list[Example]
    pictures: frozenset[str]

    def others(self, examples: Sequence[Example]) -> list[Example]:
        """Those of the examples that are about other pictures.

        Raises:
            UserError: there is none.
        """
        found = [each for each in examples if picture_of(each) not in self.pictures]
        if examples and not found:
            raise UserError(
                f"the adversary practises on all pictures of these {len(examples)} questions, so "
                "none is left to be measured; give a larger --limit, or more data"
            )
        return found


def picture_of(example: Example) -> str:
    """What tells its picture from others: the cluster, or what the picture shows."""
    return f"cluster {example.cluster}" if example.cluster else content_key(example.picture)


def set_aside(examples: Sequence[Example], count: int) -> Practice:
    """Choose practice questions from a whole data set.

    Pictures are taken in the order of a hash of their names, at most a quarter of them; of each one
    question, and further ones only where ``count`` is not reached by then. So the choice depends
    neither on the order of the data nor on how many of them are measured.

    Raises:
        UserError: fewer than two pictures: one to practise on and one to measure.
    """
    by_picture: dict[str, list[Example]] = {}
    for example in examples:
        by_picture.setdefault(picture_of(example), []).append(example)
    if len(by_picture) < 2:
        raise UserError(
            f"{len(examples)} examples of {len(by_picture)} pictures: the adversary practises on "
            "other pictures than those that are measured, so it takes at least two; give more "
            "data, or leave the adversary out"
        )
    most = min(count, max(1, len(by_picture) // MOST_SET_ASIDE))
    chosen = sorted(by_picture, key=_shuffled)[:most]
    queues = [sorted(by_picture[picture], key=lambda e: _shuffled(e.id)) for picture in chosen]
    longest = max(map(len, queues))
    rounds = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return Practice(rounds[:count], frozenset(chosen))


def practice_of(examples: Sequence[Example]) -> Practice:
    """All of these examples, for practice."""
    return Practice(list(examples), frozenset(map(picture_of, examples)))


def _shuffled(name: str) -> str:
    return hashlib.sha256(f"practice {name}".encode("utf-8", "surrogatepass")).hexdigest()


# ---- which pictures count ------------------------------------------------------------------------


class ContentCheck(Protocol):
    """Says which redrawn pictures still show what the clean ones do."""

    name: str

    def kept(
        self, drawn_B3SS: Tensor, clean_B3SS: Tensor, examples: Sequence[Example]
    ) -> list[bool]:
        """One for each picture; both tensors are in [0, 1]."""


class SimilarityCheck:
    """Content is kept where a similarity reaches a floor.

    Args:
        scorer: compares pictures; CLIP's is an independent judge, the model's own features are not.
        floor: the least similarity.
        name: for the record.
    """

    def __init__(self, scorer: SimilarityScorer, floor: float, name: str) -> None:
        self.scorer, self.floor, self.name = scorer, floor, name

    @torch.no_grad()
    def kept(
        self, drawn_B3SS: Tensor, clean_B3SS: Tensor, examples: Sequence[Example]
    ) -> list[bool]:
        """See ``ContentCheck``."""
        texts = [each.caption or f"{each.question} {each.answer}" for each in examples]
        similar_B = self.scorer(drawn_B3SS, clean_B3SS, texts)
        return [value >= self.floor for value in similar_B.tolist()]


@torch.no_grad()
def own_features_check(
    backbone: Backbone, batches: Sequence[Rows], redraw: Callable[[Rows], Tensor]
) -> SimilarityCheck:
    """As like the clean picture as plain redrawings are, in the model's own vision features.

    The floor is the similarity that 95 % of the unperturbed redrawings of the practice pictures
    reach: no absolute figure suits two models. The adversary can learn to please these features, so
    a check of its own (a reader, CLIP) is better where there is one.
    """
    scorer = FeatureSimilarity(backbone.image_features)
    similar = torch.cat([scorer(redraw(batch), batch.images, []) for batch in batches]).float()
    floor = torch.quantile(similar, KEPT_BY_REDRAWING).item()
    return SimilarityCheck(scorer, floor, "the model's own features, as plain redrawings")
