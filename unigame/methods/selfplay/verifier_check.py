"""Does the similarity know content from style? Measured on the first batches of a run.

A verifier must let a picture pass that shows the same thing in another style, and stop one that
shows something else. Cosines of a model's own features often do the opposite: a faint picture of
the same scene scores below another scene in the same style. Then the filter keeps what changed the
content, and throws away what only changed the style: the game cannot win.

Both sides are hard ones: the worst of three mild corruptions of a picture, against pictures in the
same style with another one's content in their left or right half. Against whole other pictures
every scorer looks good.

    B  samples in the batch    S  side of the square image, px
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from unigame.methods.rows import Rows
from unigame.methods.semantics import SimilarityScorer

logger = logging.getLogger(__name__)
ENOUGH = 32  # pictures after which the figure is taken
OTHERS = 3  # pictures whose content each is given, at most


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
        generator = torch.Generator().manual_seed(len(self._same))
        other = self._half_another(rows)
        if not other:
            return
        same = torch.stack(
            [self._score(c, rows) for c in mild_corruptions(rows.pictures, generator)]
        )
        self._same.append(same.amin(0))
        self._other += other
        if sum(len(part) for part in self._same) >= ENOUGH:
            self.judge()

    def _score(self, images: Tensor, rows: Rows) -> Tensor:
        return self.scorer(images, rows.pictures, rows.texts).flatten().float().cpu()

    def _half_another(self, rows: Rows) -> list[Tensor]:
        """Of pictures with half the content of one whose text differs; [] where there is none."""
        found, texts, pictures = [], rows.texts, rows.pictures
        middle = pictures.shape[-1] // 2
        for step in range(1, min(len(rows), OTHERS + 1)):
            other = pictures.roll(-step, 0)
            pairs = zip(texts, texts[step:] + texts[:step], strict=True)
            differs_B = torch.tensor([text != another for text, another in pairs])
            if differs_B.any():
                for left, right in ((pictures, other), (other, pictures)):
                    mixed = torch.cat([left[..., :middle], right[..., middle:]], dim=-1)
                    found.append(self._score(mixed, rows)[differs_B])
        return found

    def judge(self) -> None:
        """Warn if the verifier punishes style more than content, on what was seen so far."""
        if self._done or not self._other:
            return
        self._done = True
        self.auc = auc(torch.cat(self._same), torch.cat(self._other))
        if self.auc < self.needed:
            logger.warning(
                "this similarity (%s) punishes style more than content: it tells mildly corrupted "
                "pictures from ones with half of another's content with an AUC of %.3f, below "
                "verifier_check=%g; "
                "give a CLIP or SigLIP checkpoint (similarity=clip, similarity_model), or a reader "
                "of your own",
                self.named,
                self.auc,
                self.needed,
            )
