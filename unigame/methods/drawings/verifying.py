"""Drawing many pictures, and finding out whether they show what they were drawn by.

    D  drawings    N  image tokens    S  side of the square image, px    Q  questions about all

A drawing is confirmed when U's answers from the picture agree with the answers from its caption.
The share of agreeing answers is a figure of its own: it says how far the two halves of a model
speak of the same thing. Or an image-text model compares the drawing with its caption: it knows
nothing of what U believes, and sees less of what a picture shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unigame.methods.drawings.questions import agrees
from unigame.methods.drawings.settings import BY_SIMILARITY
from unigame.methods.drawings.texts import QA

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
    batch: int,
) -> Tensor:
    """A free-running drawing of each caption, by its own seed, in compact form, (D, N) or latents.

    The model draws as it is now, adapter included. ``batch`` of them are drawn at a time.
    """
    parts = [
        backbone.generate_compact(
            captions[start : start + batch],
            seeds=seeds[start : start + batch],
            temperature=temperature,
            guidance_scale=guidance_scale,
        )
        for start in range(0, len(captions), batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def ask(
    backbone: Backbone,
    codes: Tensor,
    asked: Sequence[Sequence[str]],
    *,
    base: bool,
    max_new_tokens: int,
    batch: int,
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
    said: list[list[str]] = [[] for _ in asked]
    off: AbstractContextManager[None] = backbone.lora_disabled() if base else nullcontext()
    with off:
        for start in range(0, len(asked), batch):
            some = asked[start : start + batch]
            if not any(some):
                continue
            images = rendered(backbone, codes[start : start + batch])
            pairs = [(row, question) for row, own in enumerate(some) for question in own]
            for piece in _pieces(pairs, batch):
                replies = _replies(backbone, images, piece, max_new_tokens)
                for (row, _), reply in zip(piece, replies, strict=True):
                    said[start + row].append(reply)
    return said


def rendered(backbone: Backbone, codes: Tensor) -> Tensor:
    """The pictures (D, 3, S, S) of drawings in compact form, float32 in [0, 1]."""
    return backbone.render(codes.to(backbone.device)).float().clamp(0, 1)


def _pieces(pairs: list[tuple[int, str]], size: int) -> Iterator[list[tuple[int, str]]]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


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
    batch: int
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
        assert self.scorer is not None
        found: list[float] = []
        for start in range(0, len(captions), self.batch):
            rows = slice(start, start + self.batch)
            images = rendered(self.backbone, codes[rows])
            found += self.scorer(images, images, captions[rows]).tolist()
        return found

    def _read(
        self, codes: Tensor, captions: Sequence[str], asked: Sequence[Sequence[QA]]
    ) -> list[bool | None]:
        if self.reader is None:
            return [None] * len(captions)
        if self.reader.asks:  # the base model, by the same questions
            shares, _, _ = self._agreement(codes, asked, base=True)
            return [None if share is None else share >= self.confirm for share in shares]
        found: list[bool | None] = []
        for start in range(0, len(captions), self.batch):
            rows = slice(start, start + self.batch)
            images = rendered(self.backbone, codes[rows]).cpu()
            # Of a package's reader, which may say it with numpy's or torch's own booleans.
            said = self.reader.judge(images, captions[rows])
            found += [None if right is None else bool(right) for right in said]
        return found


Judge = Callable[[Tensor, Sequence[str]], Sequence[bool | None]]
"""Pictures (D, 3, S, S) on the CPU and their captions -> whether each shows what its caption says;
None where it cannot tell."""
