"""The store of drawings: what was confirmed, in compact form, until it is old or pushed out.

    N  image tokens of one picture

A drawing is kept as what ``render`` takes (codes, two bytes each where they fit, or a latent) and
not as pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unigame.methods.drawings.texts import QA
from unigame.methods.rows import shrink


@dataclass
class StoredDrawing:
    """One drawing.

    Attributes:
        caption: what it was drawn by.
        codes: (N,) or a latent, on the CPU.
        step: at which it was drawn.
        questions: to train on, with answers.
        old: questions of old kinds with the base's own answers.
    """

    caption: str
    codes: Tensor
    step: int
    questions: list[QA]
    old: list[QA]


class DrawingStore:
    """Drawings in the order in which they came; the oldest go first.

    Args:
        capacity: most drawings.
        per_caption: most drawings of one caption; the newest stay.
        max_age: steps after which a drawing is dropped; None: never.
        seed: of what is sampled.
    """

    def __init__(
        self, capacity: int, per_caption: int, max_age: int | None = None, seed: int = 0
    ) -> None:
        self.capacity, self.per_caption, self.max_age = capacity, per_caption, max_age
        self.generator = torch.Generator().manual_seed(seed)
        self.drawings: list[StoredDrawing] = []

    def __len__(self) -> int:
        return len(self.drawings)

    def add(self, drawings: Iterable[StoredDrawing]) -> None:
        """Take drawings in; a caption's oldest, and then the oldest of all, make room."""
        for drawing in drawings:
            drawing.codes = shrink(drawing.codes)
            self.drawings.append(drawing)
        counts = Counter(drawing.caption for drawing in self.drawings)
        kept = []
        for drawing in self.drawings:
            if counts[drawing.caption] > self.per_caption:
                counts[drawing.caption] -= 1
            else:
                kept.append(drawing)
        self.drawings = kept[-self.capacity :]

    def forget(self, step: int) -> None:
        """Drop what is older than ``max_age`` at this step."""
        if self.max_age is not None:
            oldest = step - self.max_age
            self.drawings = [drawing for drawing in self.drawings if drawing.step >= oldest]

    def sample(self, count: int, generator: torch.Generator | None = None) -> list[StoredDrawing]:
        """So many drawings, each once before any comes twice; [] of an empty store.

        By the store's own generator, unless another is given.
        """
        if not self.drawings or count < 1:
            return []
        order: list[int] = []
        while len(order) < count:
            order += torch.randperm(
                len(self.drawings), generator=generator or self.generator
            ).tolist()
        return [self.drawings[index] for index in order[:count]]

    def pick(self, options: Sequence[QA], generator: torch.Generator | None = None) -> QA:
        """One of several questions."""
        generator = generator or self.generator
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    # ---- checkpoints ---------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        drawings = self.drawings
        return {
            "generator": self.generator.get_state(),
            "codes": [drawing.codes for drawing in drawings],
            "captions": [drawing.caption for drawing in drawings],
            "steps": [drawing.step for drawing in drawings],
            "questions": [[list(pair) for pair in drawing.questions] for drawing in drawings],
            "old": [[list(pair) for pair in drawing.old] for drawing in drawings],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.generator.set_state(state["generator"])
        names = ("captions", "codes", "steps", "questions", "old")
        self.drawings = [
            StoredDrawing(caption, codes, step, _pairs(questions), _pairs(old))
            for caption, codes, step, questions, old in zip(
                *(state[name] for name in names), strict=True
            )
        ]


def _pairs(rows: Sequence[Sequence[str]]) -> list[QA]:
    return [(question, answer) for question, answer in rows]


# ---- how different the drawings of a round are ---------------------------------------------------
def distinct(codes: Tensor, captions: Sequence[str]) -> tuple[int, int]:
    """Different drawings of a caption.

    Args:
        codes: (D, N) codes, or latents.
        captions: of each drawing.

    Returns:
        The number of different ones, each caption counted for itself, and of captions; (0, 0) for
        latents, of which no two are equal to the bit.
    """
    if codes.is_floating_point():
        return 0, 0
    flat = codes.detach().flatten(1).float().cpu().numpy()
    kinds = {(caption, row.tobytes()) for caption, row in zip(captions, flat, strict=True)}
    return len(kinds), len({*captions})


def codes_used(codes: Tensor, codebook: int | None) -> float | None:
    """Share of the codebook that stands in these drawings, (D, N); None for latents."""
    if not codebook or codes.is_floating_point():
        return None
    return len(codes.unique()) / codebook


def variety(codes: Tensor, captions: Sequence[str]) -> tuple[float, int]:
    """How unlike two drawings of one caption are: the share of codes in which they differ.

    Of latents it is the root of the mean squared difference, over that of both together: 0 for
    equal ones, and about 1 for two that have nothing in common.

    Args:
        codes: (D, N) codes, or latents.
        captions: of each drawing.

    Returns:
        The sum over pairs of neighbouring drawings of one caption, and the number of pairs.
    """
    total, pairs = 0.0, 0
    last: dict[str, Tensor] = {}
    for drawn, caption in zip(codes.flatten(1), captions, strict=True):
        if caption in last:
            total += _unlike(drawn, last[caption])
            pairs += 1
        last[caption] = drawn
    return total, pairs


def _unlike(one: Tensor, other: Tensor) -> float:
    if not one.is_floating_point():
        return (one != other).float().mean().item()
    one, other = one.float(), other.float()
    both = one.square().mean() + other.square().mean()
    return ((one - other).square().mean() / both.clamp_min(1e-12)).sqrt().item()
