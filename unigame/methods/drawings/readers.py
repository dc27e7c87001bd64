"""Is the verifier honest? An independent reader judges the same drawings, and drift is told.

The reader never decides (unless ``verifier=reader``): it only says, of drawings that U confirmed
and of those it did not, whether they show what they should. So the verification has a precision
(confirmed ones that are right) and a recall (right ones that are confirmed). On the synthetic world
the analytic reader is exact. Anywhere, ``reader=base`` compares a verifier that learns
(``verifier=current``) with the model as it was before training.

A verifier that learns from drawings that it confirmed itself may start to confirm its own errors:
confirmation bias. It shows in the share of *wrong* drawings that it confirms all the same: a rate
that, unlike the precision, does not move when G draws better or worse.
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
ENOUGH = 24  # wrong drawings, of the beginning and of now, before they are compared
RISE = 0.1  # of the share of wrong drawings that are confirmed, which is drift
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


@dataclass(frozen=True)
class Judged:
    """Drawings of which the reader could tell whether they are right.

    Attributes:
        drawn: how many.
        right: of them, those that are right.
        confirmed: of them, those that U confirmed.
        both: those that are right and confirmed.
    """

    drawn: int = 0
    right: int = 0
    confirmed: int = 0
    both: int = 0

    @classmethod
    def of(cls, verdicts: Verdicts) -> Judged:
        """Of a round."""
        told = [
            (bool(right), confirmed)
            for right, confirmed in zip(verdicts.right, verdicts.confirmed, strict=True)
            if right is not None
        ]
        return cls(
            len(told),
            sum(is_right for is_right, _ in told),
            sum(confirmed for _, confirmed in told),
            sum(is_right and confirmed for is_right, confirmed in told),
        )

    @property
    def wrong(self) -> int:
        """Those that are not right."""
        return self.drawn - self.right

    @property
    def misjudged(self) -> int:
        """Those that are not right, and confirmed."""
        return self.confirmed - self.both

    def figures(self) -> dict[str, tuple[int, int]]:
        """(sum, number) of what is logged."""
        return {
            "true": (self.right, self.drawn),
            "precision": (self.both, self.confirmed),
            "recall": (self.both, self.right),
            "false_confirmed": (self.misjudged, self.wrong),
        }


@dataclass
class Honesty:
    """Counts over a run, and whether the verifier began to confirm wrong drawings.

    Attributes:
        drawn: drawings judged by the reader; the next three are as in ``Judged``.
        right: see there.
        confirmed: see there.
        both: see there.
        begun: [wrong drawings, of them confirmed] of the first rounds together.
        recent: the same, of each of the last rounds.
    """

    drawn: int = 0
    right: int = 0
    confirmed: int = 0
    both: int = 0
    begun: list[int] = field(default_factory=lambda: [0, 0])
    recent: list[list[int]] = field(default_factory=list)

    def see(self, judged: Judged) -> None:
        """Count a round."""
        for name, more in vars(judged).items():
            setattr(self, name, getattr(self, name) + more)
        if self.begun[0] < ENOUGH:
            self.begun = [self.begun[0] + judged.wrong, self.begun[1] + judged.misjudged]
        elif judged.wrong:
            self.recent.append([judged.wrong, judged.misjudged])
            while sum(wrong for wrong, _ in self.recent[1:]) >= ENOUGH:
                self.recent.pop(0)

    @property
    def precision(self) -> float | None:
        """Over the run."""
        return self.both / self.confirmed if self.confirmed else None

    @property
    def recall(self) -> float | None:
        """Over the run."""
        return self.both / self.right if self.right else None

    def drift(self) -> tuple[float, float] | None:
        """Share of wrong drawings that are confirmed, at the beginning and now, where it rose.

        None where it did not, or not by more than chance.
        """
        wrong = sum(count for count, _ in self.recent)
        misjudged = sum(count for _, count in self.recent)
        if min(self.begun[0], wrong) < ENOUGH:
            return None
        early, late = self.begun[1] / self.begun[0], misjudged / wrong
        # Of proportions; never 0, or one confirmed by luck would be beyond chance.
        spread = [max(p * (1 - p), 0.01) / n for p, n in ((early, self.begun[0]), (late, wrong))]
        if late - early > max(RISE, ERRORS * math.sqrt(sum(spread))):
            return early, late
        return None

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "recent": [list(one) for one in self.recent], "begun": [*self.begun]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        for name in vars(self):
            setattr(self, name, state[name])
