"""Plain supervised fine-tuning: the rows of the records, and nothing beside them.

Answers are always learned. Captions are, too, where the run has a ``generation_weight``: joint
training of both halves. A run that lists ``sft`` alone is the control of every other method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unigame.methods.base import Method
from unigame.methods.findings import Finding, Log, u_does_not_learn


@dataclass
class SFTSettings:
    """There are none: what the records' rows count for is set for the run."""


class SFT(Method):
    """Adds nothing."""

    name = "sft"
    Settings = SFTSettings

    def uneven_passes(self) -> str:
        """None."""
        return ""

    def health(self, log: Sequence[Mapping[str, Any]]) -> list[Finding]:
        """Whether U learns."""
        return u_does_not_learn(Log(log))
