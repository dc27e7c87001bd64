"""Does the similarity know content from style? Measured on the first batches of a run.

A verifier must let a picture pass that shows the same thing in another style, and stop one that
shows something else. Cosines of a model's own features often do the opposite: a faint picture of
the same scene scores below another scene in the same style. Then the filter keeps what changed the
content, and throws away what only changed the style: the game cannot win.

Both sides are hard ones: the worst of three mild corruptions of a picture, against pictures in the
same style with another one's content in their left or right half. Against whole other pictures
every scorer looks good. The chance that a picture of the first kind scores above one of the second
is called the verifier's AUC, here and in ``unigame doctor --game``.

    B  samples in the batch    S  side of the square image, px
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unigame.methods.rows import Rows
from unigame.methods.semantics import SimilarityScorer
from unigame.system.say import warn

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


def placements(values: Tensor, others: Tensor) -> Tensor:
    """Of each value the share of ``others`` that lie below it, float64; ties count half."""
    ordered = others.double().sort().values
    below = torch.searchsorted(ordered, values.double())
    up_to = torch.searchsorted(ordered, values.double(), right=True)
    return (below + up_to).double() / (2 * len(others))


def auc(above: Tensor, below: Tensor) -> float:
    """Chance that a value of ``above`` is larger than one of ``below``; ties count half."""
    return placements(above, below).mean().item()


def worst_copies(scorer: SimilarityScorer, rows: Rows, generator: torch.Generator) -> Tensor:
    """The smallest similarity of each picture's mild corruptions, (B,), float32 on the CPU."""
    pictures, texts = rows.pictures, rows.texts
    copies = mild_corruptions(pictures, generator)
    return torch.stack([_score(scorer, copy, pictures, texts) for copy in copies]).amin(0)


def half_another(
    scorer: SimilarityScorer, pictures: Tensor, texts: Sequence[str], at_once: int | None = None
) -> tuple[Tensor, Tensor]:
    """Similarities of pictures with half the content of one whose text differs.

    Args:
        scorer: the verifier.
        pictures: (B, 3, S, S), float in [0, 1].
        texts: of each.
        at_once: pictures that are judged in one pass. Default: all.

    Returns:
        Similarities (E,), float32, and the picture that each was made of, (E,), both on the CPU;
        empty where no two texts differ.
    """
    count, middle = len(texts), pictures.shape[-1] // 2
    found, made_of = [torch.zeros(0)], [torch.zeros(0, dtype=torch.long)]
    for first in range(0, count, at_once or max(count, 1)):
        own = list(range(first, min(first + (at_once or count), count)))
        for step in range(1, min(count, OTHERS + 1)):
            another = [(place + step) % count for place in own]
            differs = [texts[one] != texts[two] for one, two in zip(own, another, strict=True)]
            if not any(differs):
                continue
            mine, theirs, said = pictures[own], pictures[another], [texts[place] for place in own]
            for left, right in ((mine, theirs), (theirs, mine)):
                mixed = torch.cat([left[..., :middle], right[..., middle:]], dim=-1)
                found.append(_score(scorer, mixed, mine, said)[differs])
                made_of.append(torch.tensor(own)[differs])
    return torch.cat(found), torch.cat(made_of)


def _score(
    scorer: SimilarityScorer, images: Tensor, pictures: Tensor, texts: Sequence[str]
) -> Tensor:
    return scorer(images, pictures, texts).flatten().float().cpu()


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
        self._seen = 0  # pictures
        self._done = not speaks or needed == 0
        self.auc: float | None = None

    @torch.no_grad()
    def see(self, rows: Rows) -> None:
        """Measure on some pictures, and judge once there are enough."""
        if self._done:
            return
        self._seen += len(rows)
        other_E, _ = half_another(self.scorer, rows.pictures, rows.texts)
        if not len(other_E):
            return
        generator = torch.Generator().manual_seed(len(self._same))
        self._same.append(worst_copies(self.scorer, rows, generator))
        self._other.append(other_E)
        if sum(len(part) for part in self._same) >= ENOUGH:
            self.judge()

    def judge(self) -> None:
        """Warn if the verifier punishes style more than content, on what was seen so far.

        Where pictures were seen, and none beside another with a different text, it says that
        nothing was measured.
        """
        if self._done or not self._seen:
            return
        self._done = True
        if not self._other:
            warn(
                f"whether this similarity ({self.named}) knows content from style was not measured "
                f"(verifier_check={self.needed:g}): no batch had two pictures with different "
                "texts; `unigame doctor --game RECIPE` measures it over all batches"
            )
            return
        self.auc = auc(torch.cat(self._same), torch.cat(self._other))
        if self.auc < self.needed:
            warn(
                f"this similarity ({self.named}) punishes style more than content: the verifier's "
                "AUC (mildly corrupted pictures against ones with half of another's content) is "
                f"{self.auc:.3f}, below verifier_check={self.needed:g}; give a CLIP or SigLIP "
                "checkpoint (similarity=clip, similarity_model), or a reader of your own"
            )
