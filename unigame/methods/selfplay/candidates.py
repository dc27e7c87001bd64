"""Candidates as the game meets them: drawn once, encoded once, asked, and compared.

    B  samples in the batch    K  candidates drawn per sample    S  side of the square image, px
    N  image tokens            H  width of the language model    E  B*K rows, row b*K+k

One pass of the vision encoder serves the answer, the similarity by features and the buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unigame.methods.answers import own_loss, reads_right
from unigame.methods.rows import Rows
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.methods.semantics import SimilarityScorer

if TYPE_CHECKING:
    from unigame.backbones.base import Backbone, Drawing


@dataclass(frozen=True)
class OwnPerturbation:
    """What each candidate drew for itself: a multiple of eps, and a head of C."""

    strength_BK: Tensor
    head_BK: Tensor

    @classmethod
    def drawn(
        cls, samples: int, settings: SelfPlaySettings, generator: torch.Generator | None
    ) -> OwnPerturbation:
        """One of each for every candidate, uniformly; the redrawn baseline draws them, too."""
        device = "cpu" if generator is None else generator.device
        shape = (samples, settings.num_candidates)
        strengths = torch.tensor(settings.strengths, device=device)

        def choose(count: int) -> Tensor:
            return torch.randint(count, shape, generator=generator, device=device)

        return cls(strengths[choose(len(strengths))], choose(settings.heads))

    @staticmethod
    def joined(parts: Sequence[OwnPerturbation | None]) -> OwnPerturbation | None:
        """Those of consecutive parts of one batch; None where there are none."""
        own = [part for part in parts if part is not None]
        if not own:
            return None
        return OwnPerturbation(
            torch.cat([part.strength_BK for part in own]), torch.cat([part.head_BK for part in own])
        )

    def to(self, device: torch.device) -> OwnPerturbation:
        """The same on a device."""
        return OwnPerturbation(self.strength_BK.to(device), self.head_BK.to(device))


@dataclass
class ChallengeResult:
    """What a challenge found. Row ``b * K + k`` of drawing and tokens is entry (b, k) elsewhere.

    Attributes:
        objective: L_C averaged over samples, a scalar that C maximises; carries C's graph.
        ce_BK: cross-entropy of the true answers' own tokens on the candidates, detached.
        right_BK: whether U reads each candidate right; see ``answers``.
        hardness_BK: H of Eq. 4, detached.
        similarity_BK: of candidates to originals, detached.
        delta_BNH: the perturbation, detached float32; where candidates differ, that of the first
            head at full strength.
        states_BNH: what was perturbed: z_hat, or z in token space.
        drawing: the candidates; None in token space.
        tokens_ENH: what U read: z of the candidates (B*K, N, H); in token space z_til itself.
        codes: the images' own codes; None in token space.
        metrics: figures for logging.
        own: what each candidate drew for itself; None where all are perturbed alike.
        backbone: who played; ``perturber_step`` needs it to keep dropout off in backward.
    """

    objective: Tensor
    ce_BK: Tensor
    right_BK: Tensor
    hardness_BK: Tensor
    similarity_BK: Tensor
    delta_BNH: Tensor
    states_BNH: Tensor
    drawing: Drawing | None
    tokens_ENH: Tensor
    codes: Tensor | None
    metrics: dict[str, float]
    backbone: Backbone = field(repr=False)
    own: OwnPerturbation | None = None

    @classmethod
    def joined(cls, parts: Sequence[ChallengeResult]) -> ChallengeResult:
        """The results of consecutive parts of one batch, as one; without a graph."""
        if len(parts) == 1:
            return parts[0]
        first, rows = parts[0], [len(part.ce_BK) for part in parts]

        def cat(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        drawing = first.drawing
        if drawing is not None:
            drawings = [part.drawing for part in parts if part.drawing is not None]
            drawing = replace(
                drawing,
                images=torch.cat([drawn.images for drawn in drawings]),
                compact=torch.cat([drawn.compact for drawn in drawings]),
            )
        return cls(
            # Each part's objective was already scaled by its share of the rows.
            objective=torch.stack([part.objective.detach() for part in parts]).sum(),
            ce_BK=cat("ce_BK"),
            right_BK=cat("right_BK"),
            hardness_BK=cat("hardness_BK"),
            similarity_BK=cat("similarity_BK"),
            delta_BNH=cat("delta_BNH"),
            states_BNH=cat("states_BNH"),
            drawing=drawing,
            tokens_ENH=cat("tokens_ENH"),
            codes=None if first.codes is None else cat("codes"),
            metrics={
                name: sum(n * part.metrics[name] for n, part in zip(rows, parts, strict=True))
                / sum(rows)
                for name in first.metrics
            },
            backbone=first.backbone,
            own=OwnPerturbation.joined([part.own for part in parts]),
        )


@dataclass
class Reading:
    """Some candidates of every sample, as U and the scorers see them; E rows, row ``b * k + j``."""

    ce_BK: Tensor
    right_BK: Tensor
    similarity_BK: Tensor
    label_BK: Tensor | None
    tokens_ENH: Tensor
    drawing: Drawing | None

    def detach(self) -> Reading:
        """Without the graph, which the objective holds on to as long as it is needed."""
        drawing = self.drawing
        if drawing is not None:
            drawing = replace(drawing, images=drawing.images.detach())
        return Reading(
            ce_BK=self.ce_BK.detach(),
            right_BK=self.right_BK,
            similarity_BK=self.similarity_BK.detach(),
            label_BK=None if self.label_BK is None else self.label_BK.detach(),
            tokens_ENH=self.tokens_ENH.detach(),
            drawing=drawing,
        )

    def beside(self, other: Reading) -> Reading:
        """These candidates and ``other``'s of the same samples, in this order."""
        samples = len(self.ce_BK)

        def rows(mine: Tensor, others: Tensor) -> Tensor:
            pair = [part.unflatten(0, (samples, -1)) for part in (mine, others)]
            return torch.cat(pair, dim=1).flatten(0, 1)

        drawing = None
        if self.drawing is not None and other.drawing is not None:
            drawing = replace(
                self.drawing,
                images=rows(self.drawing.images, other.drawing.images),
                compact=rows(self.drawing.compact, other.drawing.compact),
            )
        label = None
        if self.label_BK is not None and other.label_BK is not None:
            label = torch.cat([self.label_BK, other.label_BK], dim=1)
        return Reading(
            ce_BK=torch.cat([self.ce_BK, other.ce_BK], dim=1),
            right_BK=torch.cat([self.right_BK, other.right_BK], dim=1),
            similarity_BK=torch.cat([self.similarity_BK, other.similarity_BK], dim=1),
            label_BK=label,
            tokens_ENH=rows(self.tokens_ENH, other.tokens_ENH),
            drawing=drawing,
        )


def draw_and_read(
    backbone: Backbone,
    perturbed_BNH: Tensor,
    states_BNH: Tensor,
    codes: Tensor | None,
    rows: Rows,
    settings: SelfPlaySettings,
    *,
    count: int,
    sample: bool,
    scorer: SimilarityScorer,
    label_scorer: SimilarityScorer | None,
    generator: torch.Generator | None,
) -> Reading:
    """Draw ``count`` candidates of each sample, encode them once, ask and compare."""
    if codes is None:  # token space: nothing is drawn
        drawing, features, tokens_ENH = None, None, perturbed_BNH
    else:
        drawing = backbone.draw(
            perturbed_BNH,
            codes,
            num_candidates=count,
            sample=sample,
            generator=generator,
            **settings.drawing_options,
        )
        features, tokens_ENH = backbone.read_images(drawing.images)
    return judged(
        backbone,
        drawing,
        features,
        tokens_ENH,
        rows,
        scorer,
        label_scorer,
        in_token_space=(perturbed_BNH, states_BNH),
    )


def judged(
    backbone: Backbone,
    drawing: Drawing | None,
    features: Tensor | None,
    tokens_ENH: Tensor,
    rows: Rows,
    scorer: SimilarityScorer,
    label_scorer: SimilarityScorer | None = None,
    *,
    in_token_space: tuple[Tensor, Tensor] | None = None,
) -> Reading:
    """Ask U about candidates, and compare them with their originals.

    Args:
        backbone: the model.
        drawing: the candidates' pictures; None in token space.
        features: what the vision encoder says of them.
        tokens_ENH: what U reads of them.
        rows: B originals with questions and true answers.
        scorer: of the similarity.
        label_scorer: of the content terms; None: they are off.
        in_token_space: perturbed and original tokens, to compare where nothing is drawn.
    """
    losses = backbone.answer_token_losses(None, *rows.question_arguments, embeds=tokens_ENH)
    ce_BK = own_loss(losses).unflatten(0, (len(rows), -1))
    right_BK = reads_right(losses).unflatten(0, (len(rows), -1))

    def score(by: SimilarityScorer) -> Tensor:
        if drawing is None:
            assert in_token_space is not None
            return by.score_tokens(*in_token_space).view_as(ce_BK)
        similarity = by(
            drawing.images,
            rows.pictures,
            rows.texts,
            features=features,
            reference_features=rows.features,
        )
        return similarity.view_as(ce_BK)

    label_BK = None if label_scorer is None else score(label_scorer)
    if label_BK is not None and label_scorer is scorer:
        similarity_BK = label_BK
    else:
        with torch.no_grad():  # only the label term needs a gradient through the scorer
            similarity_BK = score(scorer)
    return Reading(ce_BK, right_BK, similarity_BK, label_BK, tokens_ENH, drawing)
