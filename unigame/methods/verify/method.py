"""U teaches G: drawings whose content U confirms train the caption -> image loss.

Self-verified rejection sampling: G draws each caption K times, U answers questions about the
drawings, and those that it confirms become pairs of caption and codes. Nothing but captions is
needed. The family of SRUM (arXiv 2510.12784) and UniRL's fine-tuning variant, without a reward.

The rows belong to the ``generation`` loss, beside those of records with a caption, where the run
has a ``generation_weight``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from unigame.methods.drawings.method import DrawingMethod, figures_of
from unigame.methods.drawings.settings import DrawingSettings
from unigame.methods.drawings.store import StoredDrawing
from unigame.methods.drawings.texts import QA, Text
from unigame.methods.rows import Rows


@dataclass
class VerifySettings(DrawingSettings):
    """Settings of ``Verify``: those that all methods of verified drawings have."""


class Verify(DrawingMethod):
    """Adds rows of caption -> drawing, of drawings that U confirmed."""

    name = "verify"
    Settings = VerifySettings
    figures = figures_of("verify")
    phases = ("verify_draw", "verify_ask")
    losses = ("generation",)

    def kept(
        self,
        texts: Sequence[Text],
        codes: Tensor,
        asked: Sequence[Sequence[QA]],
        seeds: Sequence[int],
        step: int,
    ) -> list[StoredDrawing]:
        """Caption, codes, and what it was verified by."""
        return [
            StoredDrawing(text.caption, own, step, list(verified), [])
            for text, own, verified in zip(texts, codes, asked, strict=True)
        ]

    def step_rows(self) -> list[Rows]:
        """Drawings of the store, each with the caption that it was drawn by; none of an empty one.

        There is then no such row in this process, and the trainer keeps step with the others.
        """
        return [self.pairs(self._chosen, self.settings.weight)] if self._chosen else []
