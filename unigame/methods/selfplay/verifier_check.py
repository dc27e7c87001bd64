"""Does the similarity know content from style? Measured on the first batches of a run.

A verifier must let a picture pass that shows the same thing in another style, and stop one that
shows something else. Cosines of a model's own features often do the opposite: a faint picture of
the same scene scores below another scene in the same style. Then the filter keeps what changed the
content, and throws away what only changed the style: the game cannot win.

    B  samples in the batch    S  side of the square image, px
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unigame.methods.rows import Rows
from unigame.methods.semantics import SimilarityScorer

logger = logging.getLogger(__name__)
ENOUGH = 32  # pictures after which the figure is taken


def mild_corruptions(images: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Fainter, blurred and noisy copies of pictures in [0, 1]; what they show stays plain."""
    grey = images.mean(dim=(-3, -2, -1), keepdim=True)
    side = max(2, images.shape[-1] // 16)
    small = F.interpolate(images, scale_factor=1 / side, mode="area")
    blurred = F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)
    noise = torch.randn(images.shape, generator=generator).to(images)
    mixed = 0.5 * images + 0.5 * blurred
    return [grey + 0.4 * (images - grey), mixed, (images + 0.1 * noise).clamp(0, 1)]


def auc(above: Tensor, below: Tensor) -> float:
    """Chance that a value of ``above`` is larger than one of ``below``; ties count half."""
    difference = above.double()[:, None] - below.double()[None]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()


def others(texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """Rows, and for each of them another one whose text differs."""
    pairs = [
        (row, (row + step) % len(texts))
        for row in range(len(texts))
        for step in [next((s for s in range(1, len(texts)) if _differ(texts, row, s)), 0)]
        if step
    ]
    return [row for row, _ in pairs], [other for _, other in pairs]


def _differ(texts: Sequence[str], row: int, step: int) -> bool:
    return texts[row] != texts[(row + step) % len(texts)]


class VerifierCheck:
    """Collects similarities until there are enough, and warns once.

    Args:
        scorer: the verifier.
        named: how similarity is measured, for the message.
        needed: AUC below which it warns; 0: nothing is measured.
        speaks: whether this process measures and warns.
    """

    def __init__(
        self, scorer: SimilarityScorer, named: str, needed: float, speaks: bool = True
    ) -> None:
        self.scorer, self.named, self.needed = scorer, named, needed
        self._same: list[Tensor] = []
        self._other: list[Tensor] = []
        self._done = not speaks or needed == 0
        self.auc: float | None = None

    @torch.no_grad()
    def see(self, rows: Rows) -> None:
        """Measure on some pictures, and judge once there are enough."""
        if self._done:
            return
        same, other = others(rows.texts)
        if not same:
            return
        pictures, texts = rows.pictures[same], [rows.texts[row] for row in same]
        generator = torch.Generator().manual_seed(len(self._same))
        for changed in mild_corruptions(pictures, generator):
            self._same.append(self.scorer(changed, pictures, texts).flatten().float().cpu())
        self._other.append(self.scorer(rows.pictures[other], pictures, texts).float().cpu())
        if sum(len(part) for part in self._other) >= ENOUGH:
            self.judge()

    def judge(self) -> None:
        """Warn if the verifier punishes style more than content, on what was seen so far."""
        if self._done or not self._other:
            return
        self._done = True
        self.auc = auc(torch.cat(self._same), torch.cat(self._other))
        if self.auc < self.needed:
            logger.warning(
                "this similarity (%s) punishes style more than content: it tells a mildly "
                "corrupted picture from another one with an AUC of %.3f, below verifier_check=%g; "
                "give a CLIP or SigLIP checkpoint (similarity=clip, similarity_model), or a reader "
                "of your own",
                self.named,
                self.auc,
                self.needed,
            )
