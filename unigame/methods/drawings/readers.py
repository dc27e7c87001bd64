"""Is the verifier honest? An independent reader judges the same drawings, and drift is told.

The reader never decides (unless ``verifier=reader``): it only says, of drawings that U confirmed
and of those it did not, whether they show what they should. So the verification has a precision
(confirmed ones that are right) and a recall (right ones that are confirmed). On the synthetic world
the analytic reader is exact. Anywhere, ``reader=base`` compares a verifier that learns
(``verifier=current``) with the model as it was before training.

A verifier that learns from drawings that it confirmed itself may start to confirm its own errors:
confirmation bias. The reader sees it as a falling precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unigame.registry import Registry

if TYPE_CHECKING:
    from unigame.methods.drawings.verifying import Judge, Verdicts

READERS = Registry("unigame.readers", {"world": "unigame.synthetic.from_captions:read_drawings"})
"""Independent readers by name: functions such as ``verifying.Judge``. A package of yours adds one
by an entry point of this group."""
BASE = "base"
"""In the place of a reader: the model with LoRA off, asked the same questions."""
ENOUGH = 24  # confirmed drawings, of the beginning and of now, before they are compared
FALL = 0.1  # of the precision that is drift
ERRORS = 2.0  # standard errors of the difference that it must exceed


@dataclass(frozen=True)
class Reader:
    """An independent reader.

    Attributes:
        name: as it is set.
        judge: judges pictures.
        asks: it is the base model, which is asked instead.
    """

    name: str
    judge: Judge
    asks: bool = False


def build_reader(name: str | None) -> Reader | None:
    """The reader of a setting; None: none.

    Raises:
        UserError: an unknown name.
    """
    if name is None:
        return None
    if name == BASE:
        return Reader(name, _never, asks=True)
    return Reader(name, READERS.get(name))


def _never(images: Tensor, captions: Sequence[str]) -> list[bool | None]:
    raise AssertionError("the base model is asked questions")


@dataclass
class Honesty:
    """Counts of one process over a run, and whether the verifier's precision fell.

    Attributes:
        drawn: drawings judged by the reader.
        right: of them, those that are right.
        confirmed: of them, those that U confirmed.
        both: those that are right and confirmed.
        rounds: (confirmed, of them right) of each round, the last ones.
        first: the same, of the first rounds together.
    """

    drawn: int = 0
    right: int = 0
    confirmed: int = 0
    both: int = 0
    rounds: list[list[int]] = field(default_factory=list)
    first: list[int] = field(default_factory=lambda: [0, 0])

    def see(self, verdicts: Verdicts) -> dict[str, tuple[int, int]]:
        """Count a round; gives (sum, number) of its figures."""
        told = [
            (bool(right), confirmed)
            for right, confirmed in zip(verdicts.right, verdicts.confirmed, strict=True)
            if right is not None
        ]
        if not told:
            return {}
        right = sum(is_right for is_right, _ in told)
        confirmed = sum(is_so for _, is_so in told)
        both = sum(is_right and is_so for is_right, is_so in told)
        self.drawn += len(told)
        self.right += right
        self.confirmed += confirmed
        self.both += both
        if self.first[0] < ENOUGH:
            self.first = [self.first[0] + confirmed, self.first[1] + both]
        else:
            self.rounds.append([confirmed, both])
            while sum(count for count, _ in self.rounds[1:]) >= ENOUGH:
                self.rounds.pop(0)
        return {
            "true": (right, len(told)),
            "precision": (both, confirmed),
            "recall": (both, right),
        }

    @property
    def precision(self) -> float | None:
        """Over the run."""
        return self.both / self.confirmed if self.confirmed else None

    @property
    def recall(self) -> float | None:
        """Over the run."""
        return self.both / self.right if self.right else None

    def drift(self) -> tuple[float, float] | None:
        """Precision at the beginning and now, where it fell by more than chance; else None."""
        count = sum(confirmed for confirmed, _ in self.rounds)
        right = sum(both for _, both in self.rounds)
        if min(self.first[0], count) < ENOUGH:
            return None
        early, late = self.first[1] / self.first[0], right / count
        # Of proportions; never 0, or one confirmed by luck would be beyond chance.
        spread = [max(p * (1 - p), 0.01) / n for p, n in ((early, self.first[0]), (late, count))]
        if early - late > max(FALL, ERRORS * math.sqrt(sum(spread))):
            return early, late
        return None

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "rounds": [list(one) for one in self.rounds], "first": [*self.first]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        for name in vars(self):
            setattr(self, name, state[name])
