"""A small unified model in the making: what the stages and the gates ask of either family.

Many questions share one image prefix under a mask of their own; every segment has exactly the
tokens and positions that inference gives a single question, so nothing has to be unlearned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor, nn

from unigame.backbones.common.layout import TokenLayout

QA = tuple[str, str]


@dataclass(frozen=True)
class Packed:
    """Questions about B pictures in rows of T tokens; the pictures come first in every row.

    Attributes:
        ids_BT: tokens, as the layout writes them; ``pad_id`` where there is none.
        positions_BT: rotary positions.
        seen_BTT: which tokens each token may look at, itself always.
        where: places of the flattened rows at which answers are predicted.
        targets: the tokens that are to be said there.
        question: the number of the question that each belongs to.
    """

    ids_BT: Tensor
    positions_BT: Tensor
    seen_BTT: Tensor
    where: Tensor
    targets: Tensor
    question: Tensor


class Nano(ABC):
    """A whole model, and its packed forward pass.

    Attributes:
        model: what is trained, and what LoRA is put on.
        layout: text to token ids.
        prefix_sees_itself: whether the tokens of a picture see those behind them, at one position.
        temperature: at which the gates let it draw freely.
    """

    model: nn.Module
    layout: TokenLayout
    prefix_sees_itself = False
    temperature = 0.7

    def __init__(self) -> None:
        self.segment = lru_cache(maxsize=50_000)(self._segment)
        first = self.layout.question_ids("?")
        self.prefix = first[: self._prefix_length(first)]

    # ---- a family's own ------------------------------------------------------------------------
    @abstractmethod
    def _prefix_length(self, row: Sequence[int]) -> int:
        """Tokens of a question's row up to the end of its picture."""

    @abstractmethod
    def see(self, images: Tensor) -> Tensor:
        """What the language model reads, (B, 81, H), of pictures in [0, 1]. No gradient."""

    @abstractmethod
    def logits_at(self, packed: Packed, features: Tensor) -> Tensor:
        """Text logits at ``packed.where``; ``features`` fill the places of the pictures."""

    @abstractmethod
    def draw(self, captions: list[str], temperature: float, seed: int) -> Tensor:
        """Free drawings in [0, 1], without guidance; temperature 0: no chance in them."""

    @abstractmethod
    def redraw(self, images: Tensor) -> Tensor:
        """Pictures in [0, 1] through the model's own image tokenizer."""

    @abstractmethod
    def lora(self) -> LoraConfig:
        """LoRA on what answers."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write a checkpoint in the published layout, language model in bfloat16."""

    # ---- questions -----------------------------------------------------------------------------
    def _segment(self, question: str, answer: str) -> tuple[tuple[int, ...], int]:
        ids = self.layout.question_ids(question)[len(self.prefix) :]
        reply = self.layout.answer_ids(question, answer)
        return (*ids, *reply), len(reply)

    def pack(self, asked: list[list[QA]]) -> Packed:
        """All questions of picture b share its prefix.

        A token may look at the prefix and at its own segment only, and positions restart behind the
        prefix for every segment.
        """
        batch, prefix = len(asked), len(self.prefix)
        packed = [[self.segment(*qa) for qa in qas] for qas in asked]
        length = prefix + max(sum(len(ids) for ids, _ in row) for row in packed)
        ids = np.full((batch, length), self.layout.pad_id)
        owner = np.full((batch, length), -1)
        position = np.zeros((batch, length), np.int64)
        ids[:, :prefix], owner[:, :prefix] = self.prefix, 0
        behind = 1 if self.prefix_sees_itself else prefix
        if not self.prefix_sees_itself:
            position[:, :prefix] = np.arange(prefix)
        where, targets, rows, number = [], [], [], 0
        for b, row in enumerate(packed):
            at = prefix
            for q, (tokens, replies) in enumerate(row):
                end = at + len(tokens)
                ids[b, at:end], owner[b, at:end] = tokens, q + 1
                position[b, at:end] = np.arange(behind, behind + len(tokens))
                where += range(b * length + end - replies - 1, b * length + end - 1)
                targets += tokens[len(tokens) - replies :]
                rows += [number] * replies
                number, at = number + 1, end
        owner_BT = torch.from_numpy(owner)
        seen = (owner_BT[:, None, :] == 0) | (owner_BT[:, None, :] == owner_BT[:, :, None])
        order = torch.ones(length, length, dtype=torch.bool).tril()
        if self.prefix_sees_itself:
            order[:prefix, :prefix] = True
        seen &= order & (owner_BT >= 0)[:, None]
        seen |= torch.eye(length, dtype=torch.bool)
        return Packed(
            torch.from_numpy(ids),
            torch.from_numpy(position),
            seen,
            torch.tensor(where),
            torch.tensor(targets),
            torch.tensor(rows),
        )

    def answer_logits(
        self, features: Tensor, asked: list[list[QA]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at answer positions, their targets, and the question number of each."""
        packed = self.pack(asked)
        return self.logits_at(packed, features), packed.targets, packed.question

    @torch.no_grad()
    def right(self, features: Tensor, asked: list[list[QA]]) -> list[bool]:
        """Whether each question is answered exactly (teacher-forced argmax), in order."""
        correct: list[bool] = []
        for start in range(0, len(asked), 50):
            block = asked[start : start + 50]
            logits, targets, rows = self.answer_logits(features[start : start + 50], block)
            ok = torch.ones(sum(map(len, block)), dtype=torch.bool)
            ok[rows[logits.argmax(-1) != targets]] = False
            correct += ok.tolist()
        return correct
