"""What a challenge is given: its settings, and its batch of B samples with N image tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from unigame.errors import UserError


@dataclass(frozen=True)
class ChallengeConfig:
    """Every choice of one challenge. The defaults are the paper's where it has one.

    Attributes:
        space: perturb what the decoder draws (the paper's method) or the tokens that U reads.
        num_candidates: K, pictures drawn from each sample's perturbed states.
        gradient_candidates: how many of them C learns from; the others are drawn and scored
            without a graph, for mining alone. None: all.
        anchor: bias of the drawing toward the image's own codes, in logits; 0: none.
        temperature: of the softmax through which the discrete step passes its gradient, and of the
            Gumbel draws.
        sample: draw by Gumbel noise even at K = 1 (K > 1 always does); otherwise argmax.
        lambda_norm: lambda of Eq. 7, weight of ||delta||^2. The paper gives no value; the bound on
            eps limits the norm already.
        l2: weight of delta's mean square (authors' code: 1e-4).
        tv: weight of delta's total variation over tokens (authors' code: 1e-5).
        label_weight: weight of the label-preservation term; 0: none.
        label_floor: similarity below which that term pulls; 1: always.
        clip_weight: weight of the similarity bonus in hardness.
        clip_floor: similarity that a candidate must reach to enter the buffer.
        quantile: tau, the share of recent candidates that is not hard enough.
    """

    space: Literal["decoder", "tokens"] = "decoder"
    num_candidates: int = 1
    gradient_candidates: int | None = 1
    anchor: float = 0.0
    temperature: float = 1.0
    sample: bool = False
    lambda_norm: float = 0.0
    l2: float = 0.0
    tv: float = 0.0
    label_weight: float = 0.0
    label_floor: float = 1.0
    clip_weight: float = 0.2
    clip_floor: float = 0.3
    quantile: float = 0.6

    def __post_init__(self) -> None:
        if self.space not in ("decoder", "tokens"):
            raise UserError(f"space={self.space!r} is unknown; use 'decoder' or 'tokens'")
        if self.num_candidates < 1:
            raise UserError(f"num_candidates={self.num_candidates!r}: must be at least 1")
        if self.space == "tokens" and self.num_candidates > 1:
            raise UserError(
                f"num_candidates={self.num_candidates} in token space: nothing is drawn there, so "
                "all candidates of a sample would be equal; use 1, or space='decoder'"
            )
        self._check_learned()
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature!r}: must be above 0")
        if not 0 <= self.quantile <= 1:
            raise UserError(f"quantile={self.quantile!r}: must be between 0 and 1 (the paper: 0.6)")
        for name in ("clip_floor", "label_floor"):
            if not -1 <= getattr(self, name) <= 1:
                raise UserError(
                    f"{name}={getattr(self, name)!r}: similarities are cosines, between -1 and 1"
                )
        for name in ("anchor", "lambda_norm", "l2", "tv", "label_weight", "clip_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name}={getattr(self, name)!r}: must not be negative")

    def _check_learned(self) -> None:
        if self.learned_candidates < 1:
            raise UserError(
                f"gradient_candidates={self.gradient_candidates!r}: C learns from at least 1 "
                "candidate, or from all of them (None)"
            )

    @property
    def learned_candidates(self) -> int:
        """Candidates of each sample that C's gradient passes through."""
        if self.gradient_candidates is None:
            return self.num_candidates
        return min(self.gradient_candidates, self.num_candidates)


@dataclass
class GameBatch:
    """What one challenge plays on: B samples, each with its own question, answer and prompt.

    Attributes:
        images: (B, 3, S, S), float in [0, 1].
        questions: asked of the images.
        answers: the true answers.
        prompts: text prompt of the generation path: the caption where there is one, else the
            question. Default: the questions.
        codes: what the images are made of, (B, N), where already known: spares the tokenizer.
        sources: identifiers of the samples, for the buffer's cap. Default: positions in the batch.
        features: ``image_features`` of the images, (B, N, D), where already known: spares the
            vision encoder in a similarity by features.
    """

    images: Tensor
    questions: Sequence[str]
    answers: Sequence[str]
    prompts: Sequence[str] | None = None
    codes: Tensor | None = None
    sources: Sequence[str | int] | None = None
    features: Tensor | None = None

    def __post_init__(self) -> None:
        if self.prompts is None:
            self.prompts = list(self.questions)
        if self.sources is None:
            self.sources = list(range(len(self.questions)))
        for name in ("questions", "answers", "prompts", "codes", "sources", "features"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.images):
                raise ValueError(f"{len(value)} {name} for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def texts(self) -> list[str]:
        """What a text-based scorer compares with: the caption, else question and true answer."""
        prompts = self.prompts or self.questions
        return [
            f"{q} {a}" if p == q else p
            for p, q, a in zip(prompts, self.questions, self.answers, strict=True)
        ]
