"""Which rows of a batch take part in what, and the one mixed batch that player U sees.

A rank whose batch lacks a kind of row must still run the same forward passes as the others, or
they wait for it for ever. So nothing is skipped: such a rank runs its first row with weight zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unigame.backbones.base import Backbone
from unigame.methods.selfplay.buffer import HardSample, stack_compact
from unigame.methods.selfplay.challenge import GameBatch

Batch = dict[str, Any]
STAND_IN = "yes"  # any non-empty text will do: the row that carries it has weight zero


@dataclass(frozen=True)
class Rows:
    """Rows of a batch that take part in a loss.

    Attributes:
        index: their numbers; never empty.
        count: how many of them count: all, or none where ``index`` is a stand-in.
    """

    index: list[int]
    count: int

    @classmethod
    def where(cls, mask_B: Tensor) -> Rows:
        """The rows where ``mask_B`` holds, or row 0 with count 0."""
        index = mask_B.nonzero().flatten().tolist()
        return cls(index or [0], len(index))

    def pick(self, values: Sequence[str]) -> list[str]:
        """These rows' texts; a stand-in's empty text is filled."""
        return [values[row] or STAND_IN for row in self.index]


@dataclass(frozen=True)
class StepCounts:
    """What one optimizer step holds over all its micro-batches and ranks; denominators of losses.

    Attributes:
        answers: answers, or answer tokens under ``loss_reduction="token"``.
        captions: samples with a caption.
        micro_batches: micro-batches on this rank.
        world_size: ranks; gradients are averaged over them, so local sums are scaled up by it.
    """

    answers: float
    captions: float
    micro_batches: int
    world_size: int


def game_batch(
    inputs: Batch,
    share: float = 1.0,
    describe: Callable[[Tensor, Sequence[str]], list[str]] | None = None,
) -> tuple[GameBatch, bool]:
    """The rows with an answer, as the challenge wants them; False if they are a stand-in.

    Args:
        inputs: what the collator made.
        share: below 1, only the first ones: the batch is shuffled, so they are random.
        describe: captions of pictures, given with their ids, for rows that have none. Without it,
            or where it says nothing, the question is the prompt.
    """
    rows = Rows.where(inputs["has_answer_B"])
    index = rows.index[: math.ceil(share * len(rows.index))]
    rows = Rows(index, min(rows.count, len(index)))
    questions = rows.pick(inputs["questions"])
    captions = [inputs["captions"][row].strip() for row in rows.index]
    bare = [place for place, caption in enumerate(captions) if not caption]
    if describe is not None and bare and rows.count:
        picked = [rows.index[place] for place in bare]
        made = describe(inputs["images"][picked], [inputs["ids"][row] for row in picked])
        for place, caption in zip(bare, made, strict=True):
            captions[place] = caption
    codes = inputs.get("codes")
    batch = GameBatch(
        images=inputs["images"][rows.index],
        questions=questions,
        answers=rows.pick(inputs["answers"]),
        prompts=[
            caption or question for caption, question in zip(captions, questions, strict=True)
        ],
        codes=codes[rows.index] if codes is not None else None,
        sources=[inputs["ids"][row] for row in rows.index],
        features=inputs["features"][rows.index] if "features" in inputs else None,
    )
    return batch, rows.count > 0


def split_batch(batch: GameBatch, parts: int) -> list[tuple[GameBatch, float]]:
    """Consecutive parts of a batch, each with its share of the rows.

    There are always ``parts`` of them, because ranks that hold unequal batches must run equally
    many passes. A part for which no row is left is the first row again, with a share of 0.
    """
    if parts == 1:
        return [(batch, 1.0)]
    index = [part.tolist() for part in torch.arange(len(batch)).tensor_split(parts)]
    return [(_rows(batch, rows or [0]), len(rows) / len(batch)) for rows in index]


def _rows(batch: GameBatch, rows: list[int]) -> GameBatch:
    assert batch.prompts is not None and batch.sources is not None
    return GameBatch(
        images=batch.images[rows],
        questions=[batch.questions[row] for row in rows],
        answers=[batch.answers[row] for row in rows],
        prompts=[batch.prompts[row] for row in rows],
        codes=None if batch.codes is None else batch.codes[rows],
        sources=[batch.sources[row] for row in rows],
        features=None if batch.features is None else batch.features[rows],
    )


@torch.no_grad()
def hard_batch(backbone: Backbone, samples: Sequence[HardSample], space: str) -> Batch:
    """Hard samples as U reads them: as tokens where nothing before U learns, else as pictures.

    Tokens that the buffer kept are taken as they are; other pictures are drawn from their codes
    and encoded.
    """
    hard: Batch = {
        "pixels": None,
        "tokens": None,
        "questions": [sample.question for sample in samples],
        "answers": [sample.answer for sample in samples],
    }
    if space == "tokens":
        hard["tokens"] = stack_compact(samples, backbone.device)
    elif backbone.reads_frozen:
        hard["tokens"] = _hard_tokens(backbone, samples)
    else:
        hard["pixels"] = _pictures(backbone, samples)
    return hard


def _pictures(backbone: Backbone, samples: Sequence[HardSample]) -> Tensor:
    return backbone.render(stack_compact(samples, backbone.device)).detach().float()


def _hard_tokens(backbone: Backbone, samples: Sequence[HardSample]) -> Tensor:
    unread = [sample for sample in samples if sample.tokens is None]
    read = iter(backbone.embed_images(_pictures(backbone, unread)) if unread else ())
    rows = [next(read) if sample.tokens is None else sample.tokens for sample in samples]
    return torch.stack([row.to(backbone.device) for row in rows])


@torch.no_grad()
def read_images(backbone: Backbone, images: Tensor) -> Batch:
    """Features and tokens of clean pictures, for every phase of a step, or nothing.

    Nothing where something before the language model learns: its gradient needs the pictures.
    """
    if not backbone.reads_frozen:
        return {}
    features, tokens = backbone.read_images(images)
    return {"features": features, "tokens": tokens}


@dataclass(frozen=True)
class MixedRows:
    """Which rows of the mixed batch, clean ones before hard ones, one pass of U reads.

    Attributes:
        clean: what the clean rows are; their numbers here run from 0.
        hard: how many hard rows follow them in the whole batch.
        index: numbers of the rows of this pass; never empty.
        count: how many of them count: all, or none where the pass has no row of its own.
    """

    clean: Rows
    hard: int
    index: list[int]
    count: int

    @classmethod
    def all_of(cls, inputs: Batch) -> MixedRows:
        """The whole mixed batch in one pass."""
        clean, hard = Rows.where(inputs["has_answer_B"]), inputs.get("hard")
        size = 0 if hard is None else len(hard["questions"])
        whole = len(clean.index) + size
        return cls(clean, size, list(range(whole)), whole)

    def split(self, parts: int) -> list[MixedRows]:
        """The same rows in ``parts`` passes, always so many: ranks must run equally many.

        A pass for which no row is left reads the first row again, and it counts for nothing.
        """
        pieces = [piece.tolist() for piece in torch.tensor(self.index).tensor_split(parts)]
        return [replace(self, index=piece or [0], count=len(piece)) for piece in pieces]

    @property
    def is_hard_B(self) -> Tensor:
        """Whether each row of this pass is a hard one."""
        return torch.tensor(self.index) >= len(self.clean.index)

    @property
    def counts_B(self) -> Tensor:
        """Whether each row of this pass is more than a stand-in."""
        if not self.count:
            return torch.zeros(len(self.index), dtype=torch.bool)
        return self.is_hard_B if not self.clean.count else torch.ones_like(self.is_hard_B)


def understanding_inputs(backbone: Backbone, inputs: Batch, rows: MixedRows) -> dict[str, Any]:
    """Arguments of ``backbone(loss="answer", ...)`` for some rows of the mixed batch."""
    first = len(rows.clean.index)
    clean = [rows.clean.index[row] for row in rows.index if row < first]
    picked = [row - first for row in rows.index if row >= first]
    hard = inputs["hard"] if rows.hard else {"questions": [], "answers": []}
    texts = {
        name: [inputs[name][row] or STAND_IN for row in clean] + [hard[name][row] for row in picked]
        for name in ("questions", "answers")
    }
    if "tokens" in inputs or (rows.hard and hard["tokens"] is not None):
        parts = [hard["tokens"][picked]] if picked else []
        if clean and "tokens" in inputs:
            parts.insert(0, inputs["tokens"][clean])
        elif clean:
            parts.insert(0, backbone.embed_images(inputs["images"][clean]))
        # Hard tokens are float32 beside a bfloat16 model's clean ones: the larger type keeps delta.
        dtype = functools.reduce(torch.promote_types, [part.dtype for part in parts])
        embeds = torch.cat([part.to(parts[0].device, dtype) for part in parts])
        return {"images": None, "embeds": embeds, **texts}
    images = inputs["images"][clean]
    if picked:
        images = torch.cat([images, hard["pixels"][picked].to(images)])
    return {"images": images, **texts}
