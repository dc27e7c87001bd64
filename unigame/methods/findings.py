"""What a method finds wrong with a run, each by figures that were logged, and the knob to turn.

``docs/tuning.md`` has a section for each symptom, under its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MIN_LOGS = 6
"""Fewer logs than this show no trend: thirds of them would be single observations."""
UNLEARNS = 1.25
"""U's clean loss may rise by a quarter over a run: less is within what batches differ by."""


@dataclass(frozen=True)
class Finding:
    """One symptom of a run.

    Attributes:
        symptom: its name, also the heading in ``docs/tuning.md``: ``"C dead"``.
        says: what is seen, with the figures.
        knob: what to do.
        figures: those that show it.
    """

    symptom: str
    says: str
    knob: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.symptom}: {self.says}; {self.knob}"


class Log:
    """What was logged in training, by figure."""

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self.entries = [entry for entry in entries if "loss" in entry]

    def __len__(self) -> int:
        return len(self.entries)

    def values(self, name: str) -> list[float]:
        """Every finite value, in order."""
        found = (entry.get(name) for entry in self.entries)
        return [float(v) for v in found if isinstance(v, int | float) and math.isfinite(v)]

    def mean(self, name: str) -> float | None:
        """Over the whole run; None: never logged."""
        return _mean(self.values(name))

    def early(self, name: str) -> float | None:
        """Mean of the first third."""
        values = self.values(name)
        return _mean(values[: math.ceil(len(values) / 3)])

    def late(self, name: str) -> float | None:
        """Mean of the last third: how it stands now."""
        values = self.values(name)
        return _mean(values[-math.ceil(len(values) / 3) :])

    def never(self, name: str) -> bool:
        """Whether it was logged and always 0."""
        values = self.values(name)
        return bool(values) and not any(values)


def u_does_not_learn(log: Log) -> list[Finding]:
    """Player U stands still, or gets worse on the clean answers that it is trained on."""
    symptom = "U does not learn"
    for name in ("learning_rate", "grad_norm"):
        # One log of a warm-up or a decayed schedule may be 0; all of them may not.
        if log.never(name):
            advice = "raise learning_rate" if name == "learning_rate" else "see train_parts, lora"
            says = f"{name} was 0 in all {len(log)} logs, so U never moved"
            return [Finding(symptom, says, advice, {name: 0.0})]
    early, late = log.early("clean_answer_ce"), log.late("clean_answer_ce")
    if early is None or late is None or len(log.values("clean_answer_ce")) < MIN_LOGS:
        return []
    if late > UNLEARNS * early and late - early > 0.1:
        says = f"clean_answer_ce rose from {early:.3f} to {late:.3f}"
        return [Finding(symptom, says, "lower learning_rate or beta", {"clean_answer_ce": late})]
    return []


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
