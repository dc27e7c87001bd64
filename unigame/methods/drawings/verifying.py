"""Drawing many pictures, and finding out whether they show what they were drawn by.

    D  drawings    N  image tokens    S  side of the square image, px    Q  questions about all

A drawing is confirmed when U's answers from the picture agree with the answers from its caption.
The share of agreeing answers is a figure of its own: it says how far the two halves of a model
speak of the same thing. Or an image-text model compares the drawing with its caption: it knows
nothing of what U believes, and sees less of what a picture shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unigame.methods.drawings.questions import agrees
from unigame.methods.drawings.settings import BY_SIMILARITY
from unigame.methods.drawings.texts import QA
from unigame.system.at_once import AtOnce

if TYPE_CHECKING:
    from unigame.backbones.base import Backbone
    from unigame.methods.drawings.readers import Reader
    from unigame.methods.semantics import SimilarityScorer


@torch.no_grad()
def draw(
    backbone: Backbone,
    captions: Sequence[str],
    seeds: Sequence[int],
    *,
    temperature: float,
    guidance_scale: float,
    batch: AtOnce,
) -> Tensor:
    """A free-running drawing of each caption, by its own seed, in compact form, (D, N) or latents.

    The model draws as it is now, adapter included. ``batch`` of them are drawn at a time.
    """

    def drawn(rows: Sequence[int]) -> list[Tensor]:
        codes = backbone.generate_compact(
            [captions[row] for row in rows],
            seeds=[seeds[row] for row in rows],
            temperature=temperature,
            guidance_scale=guidance_scale,
        )
        return list(codes)

    return torch.stack(batch.each(range(len(captions)), drawn))


@torch.no_grad()
def ask(
    backbone: Backbone,
    codes: Tensor,
    asked: Sequence[Sequence[str]],
    *,
    base: bool,
    max_new_tokens: int,
    batch: AtOnce,
) -> list[list[str]]:
    """U's greedy replies to questions about drawings.

    Args:
        backbone: the model.
        codes: (D, N) or latents; pictures are made of them, ``batch`` at a time.
        asked: the questions about each drawing.
        base: whether the model answers with LoRA off.
        max_new_tokens: of a reply.
        batch: pictures, and questions, at a time.
    """

    def said_of(rows: Sequence[int]) -> list[list[str]]:
        said: list[list[str]] = [[] for _ in rows]
        pairs = [(place, text) for place, row in enumerate(rows) for text in asked[row]]
        if not pairs:
            return said
        images = rendered(backbone, codes[list(rows)])
        replies = batch.each(pairs, lambda some: _replies(backbone, images, some, max_new_tokens))
        for (place, _), reply in zip(pairs, replies, strict=True):
            said[place].append(reply)
        return said

    off: AbstractContextManager[None] = backbone.lora_disabled() if base else nullcontext()
    with off:
        return batch.each(range(len(asked)), said_of)


@torch.no_grad()
def describe(backbone: Backbone, codes: Tensor, *, max_new_tokens: int, batch: AtOnce) -> list[str]:
    """What the model with LoRA off says of each drawing, ``batch`` at a time."""

    def described(rows: Sequence[int]) -> list[str]:
        images = rendered(backbone, codes[list(rows)])
        said = backbone.caption(images, max_new_tokens=max_new_tokens)
        return [text.strip() for text in said]

    with backbone.lora_disabled():
        return batch.each(range(len(codes)), described)


def rendered(backbone: Backbone, codes: Tensor) -> Tensor:
    """The pictures (D, 3, S, S) of drawings in compact form, float32 in [0, 1]."""
    return backbone.render(codes.to(backbone.device)).float().clamp(0, 1)


def _replies(
    backbone: Backbone, images: Tensor, pairs: Sequence[tuple[int, str]], max_new_tokens: int
) -> list[str]:
    rows, questions = [row for row, _ in pairs], [question for _, question in pairs]
    if backbone.max_images > 1:  # then a picture that several questions share is encoded once
        shown = sorted(set(rows))
        index = [[shown.index(row)] for row in rows]
        return backbone.answer(
            images[shown], questions, max_new_tokens=max_new_tokens, image_index=index
        )
    return backbone.answer(images[rows], questions, max_new_tokens=max_new_tokens)


@dataclass
class Verdicts:
    """What became of D drawings.

    Attributes:
        confirmed: of each, whether it is taken for right; without a question U never confirms.
        right: of each, what the independent reader says; None where it cannot tell, or there is
            none.
        asked: questions that were asked.
        agreed: of them, those answered as the caption answers.
        unasked: drawings whose caption gave no question.
        similarity: of each, the cosine with its caption; empty where nothing compares them.
    """

    confirmed: list[bool] = field(default_factory=list)
    right: list[bool | None] = field(default_factory=list)
    asked: int = 0
    agreed: int = 0
    unasked: int = 0
    similarity: list[float] = field(default_factory=list)


@dataclass
class Verifier:
    """Confirms drawings.

    Args:
        backbone: the model.
        who: "base" (LoRA off), "current", "clip" (the scorer decides), "reader" (the independent
            one does), or "none": everything is confirmed.
        confirm: share of a drawing's questions that must agree.
        reader: judges independently; see ``readers``.
        max_new_tokens: of a reply.
        batch: pictures, and questions, at a time.
        scorer: compares drawings with their captions, for "clip".
        floor: least similarity to a caption, for "clip".
    """

    backbone: Backbone
    who: str
    confirm: float
    reader: Reader | None
    max_new_tokens: int
    batch: AtOnce
    scorer: SimilarityScorer | None = None
    floor: float = -1.0

    def __call__(
        self, codes: Tensor, captions: Sequence[str], asked: Sequence[Sequence[QA]]
    ) -> Verdicts:
        """Judge drawings.

        Args:
            codes: (D, N) or latents.
            captions: what each was drawn by.
            asked: the questions about each, with the answers that its caption gives.
        """
        found = Verdicts(unasked=sum(not own for own in asked))
        found.right = self._read(codes, captions, asked)
        if self.who == "none":
            found.confirmed = [True] * len(captions)
        elif self.who == BY_SIMILARITY:
            found.similarity = self._similarity(codes, captions)
            found.confirmed = [cosine >= self.floor for cosine in found.similarity]
        elif self.who == "reader":
            found.confirmed = [right is True for right in found.right]
        else:
            shares, found.asked, found.agreed = self._agreement(
                codes, asked, base=self.who == "base"
            )
            found.confirmed = [share is not None and share >= self.confirm for share in shares]
        return found

    def _agreement(
        self, codes: Tensor, asked: Sequence[Sequence[QA]], base: bool
    ) -> tuple[list[float | None], int, int]:
        """Share of each drawing's questions that agree, all questions, and those that agree."""
        said = ask(
            self.backbone,
            codes,
            [[question for question, _ in own] for own in asked],
            base=base,
            max_new_tokens=self.max_new_tokens,
            batch=self.batch,
        )
        right = [
            [agrees(reply, answer) for reply, (_, answer) in zip(replies, own, strict=True)]
            for replies, own in zip(said, asked, strict=True)
        ]
        shares = [sum(own) / len(own) if own else None for own in right]
        return shares, sum(map(len, right)), sum(map(sum, right))

    @torch.no_grad()
    def _similarity(self, codes: Tensor, captions: Sequence[str]) -> list[float]:
        """Cosine of each drawing with its caption."""
        scorer = self.scorer
        assert scorer is not None

        def compared(rows: Sequence[int]) -> list[float]:
            images = rendered(self.backbone, codes[list(rows)])
            found: list[float] = scorer(images, images, [captions[row] for row in rows]).tolist()
            return found

        return self.batch.each(range(len(captions)), compared)

    def _read(
        self, codes: Tensor, captions: Sequence[str], asked: Sequence[Sequence[QA]]
    ) -> list[bool | None]:
        if self.reader is None:
            return [None] * len(captions)
        if self.reader.asks:  # the base model, by the same questions
            shares, _, _ = self._agreement(codes, asked, base=True)
            return [None if share is None else share >= self.confirm for share in shares]
        judge = self.reader.judge

        def judged(rows: Sequence[int]) -> list[bool | None]:
            images = rendered(self.backbone, codes[list(rows)]).cpu()
            # Of a package's reader, which may say it with numpy's or torch's own booleans.
            said = judge(images, [captions[row] for row in rows])
            return [None if right is None else bool(right) for right in said]

        return self.batch.each(range(len(captions)), judged)


Judge = Callable[[Tensor, Sequence[str]], Sequence[bool | None]]
"""Pictures (D, 3, S, S) on the CPU and their captions -> whether each shows what its caption says;
None where it cannot tell."""
