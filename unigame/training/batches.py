"""Which rows of a batch take part in what, and the one mixed batch that player U sees.

A rank whose batch lacks a kind of row must still run the same forward passes as the others, or
they wait for it for ever. So nothing is skipped: such a rank runs its first row with weight zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unigame.backbones.base import Backbone
from unigame.game.buffer import HardSample, stack_compact
from unigame.game.challenge import GameBatch

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


def game_batch(inputs: Batch, share: float = 1.0) -> tuple[GameBatch, bool]:
    """The rows with an answer, as the challenge wants them; False if they are a stand-in.

    With a ``share`` below 1 only the first ones: the batch is shuffled, so they are random.
    """
    rows = Rows.where(inputs["has_answer_B"])
    index = rows.index[: math.ceil(share * len(rows.index))]
    rows = Rows(index, min(rows.count, len(index)))
    questions = rows.pick(inputs["questions"])
    captions = [inputs["captions"][row] for row in rows.index]
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
    )
    return batch, rows.count > 0


@torch.no_grad()
def hard_batch(backbone: Backbone, samples: Sequence[HardSample], space: str) -> Batch:
    """Hard samples as U reads them: pictures from their codes, or tokens in token space."""
    compact = stack_compact(samples, backbone.device)
    return {
        "pixels": None if space == "tokens" else backbone.render(compact).detach().float(),
        "embeds": compact if space == "tokens" else None,
        "questions": [sample.question for sample in samples],
        "answers": [sample.answer for sample in samples],
    }


def understanding_inputs(backbone: Backbone, inputs: Batch) -> tuple[dict[str, Any], Rows]:
    """Arguments of ``backbone(loss="answer", ...)`` for clean rows followed by hard ones."""
    rows = Rows.where(inputs["has_answer_B"])
    images = inputs["images"][rows.index]
    mixed: dict[str, Any] = {
        "images": images,
        "questions": rows.pick(inputs["questions"]),
        "answers": rows.pick(inputs["answers"]),
    }
    hard = inputs.get("hard")
    if hard is None:
        return mixed, rows
    mixed["questions"] += hard["questions"]
    mixed["answers"] += hard["answers"]
    if hard["embeds"] is None:
        mixed["images"] = torch.cat([images, hard["pixels"].to(images)])
    else:
        with torch.no_grad():  # encoder and projector are frozen; LoRA sits behind them
            clean = backbone.embed_images(images)
        mixed["images"] = None
        mixed["embeds"] = torch.cat([clean, hard["embeds"].to(clean)])
    return mixed, rows
