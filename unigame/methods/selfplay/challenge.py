"""One challenge, in the order it happens: states -> perturbed -> drawn -> re-read -> L_C -> buffer.

    B  samples in the batch    K  candidates drawn per sample    S  side of the square image, px
    N  image tokens            H  width of the language model    E  B*K rows, row b*K+k

This is steps 2 and 3 of the paper's Algorithm 1. Only C learns here. Deviations from the paper, and
places where it leaves a choice:

1. z_hat is one teacher-forced pass over the image's own codes, not a free-running generation: the
   candidate is a redrawing of x, so the true answer still belongs to it, in 1 pass instead of N.
2. ``anchor`` biases the redrawing toward x's own codes. The paper has none; 0 means none.
3. L_C may carry a label-preservation term, label_weight * max(0, label_floor - similarity): a
   filter afterwards cannot stop C from learning to win by changing what the picture shows.
4. ||delta||^2, l2 and tv are measured in units of eps (relative to the states' norm where eps is),
   as means over tokens: the weights mean the same for every model and image size.
5. The outer lambda of Eq. 5, which multiplies all of L_C, is left out: C's adaptive optimizer
   divides it out again. The lambda of Eq. 7 stays, and moves the gate.
6. One floor serves hardness and filter, as in F.2. So an accepted candidate never carries the
   floor's bonus in its H; the bonus of the rejected ones raises the quantile the others must reach.
7. ``space="tokens"`` (Table 4's upper half) perturbs z = Proj(Enc(x)) and draws nothing. Its
   "cosine" compares z with z_til; its candidates are stored as tokens.
8. Each candidate may draw a strength (a multiple of eps) and a head of C for itself: a C of one
   direction at one strength shows U one kind of picture only.
9. CE here is that of the answer's own tokens, without the end mark: see ``answers.py``.

Dropout is off, so hardness is a fact about the candidate and the model, not about a mask.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unigame.errors import UserError
from unigame.methods.rows import Rows
from unigame.methods.selfplay.buffer import HardSample, HardSampleBuffer
from unigame.methods.selfplay.candidates import (
    ChallengeResult,
    OwnPerturbation,
    Reading,
    draw_and_read,
)
from unigame.methods.selfplay.objectives import (
    accept,
    hardness,
    label_penalty,
    missed,
    perturber_objective,
)
from unigame.methods.selfplay.perturber import Perturber, PerturberBase, full_precision, token_rms
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.methods.semantics import NoSimilarity, SimilarityScorer

if TYPE_CHECKING:
    from unigame.backbones.base import Backbone, VisualStates

__all__ = [
    "ChallengeResult",
    "MiningReport",
    "challenge",
    "mine",
    "perturber_gradients",
    "perturber_step",
    "perturber_update",
]


def challenge(
    backbone: Backbone,
    perturber: PerturberBase,
    rows: Rows,
    settings: SelfPlaySettings,
    scorer: SimilarityScorer | None = None,
    generator: torch.Generator | None = None,
    label_scorer: SimilarityScorer | None = None,
    with_grad: bool = True,
    visual: VisualStates | None = None,
    pictures_at_once: int | None = None,
    content_weight_M: Tensor | None = None,
) -> ChallengeResult:
    """Perturb, draw, re-read and score one batch: L_C of Eq. 7 and everything mining needs.

    Costs one teacher-forced pass without gradient, K decodes, and answer passes over B*K rows in
    all; nothing is computed twice. Only ``settings.learned_candidates`` of the K carry a graph. The
    global random state is not touched when ``generator`` is given.

    Args:
        backbone: the model, U and G in one. Its weights get no gradient from ``perturber_step``.
        perturber: C. Without parameters (random, none) no graph is built.
        rows: pictures with true answers, and what they are drawn by.
        settings: of self-play.
        scorer: similarity for hardness and filter; None: every candidate passes.
        generator: for the Gumbel draws.
        label_scorer: similarity for the label-preservation term; None: ``scorer``.
        with_grad: False when C will not be updated from this result.
        visual: the batch's visual states, where U has not changed since they were computed.
        pictures_at_once: of the candidates that C does not learn from, in one pass; None: all.
        content_weight_M: each head's own, in the place of ``settings.content_weight``.

    Raises:
        UserError: a term of content without a scorer, or a scorer that cannot judge tokens.
    """
    scorer = scorer or NoSimilarity()
    label_scorer = _label_scorer(label_scorer or scorer, settings)
    with_grad = with_grad and any(p.requires_grad for p in perturber.parameters())
    with backbone.without_dropout(), torch.set_grad_enabled(with_grad and torch.is_grad_enabled()):
        states_BNH, codes = _states(backbone, rows, settings, visual)
        delta_BNH = perturber(states_BNH)
        own = None
        if settings.candidates_differ:
            own = OwnPerturbation.drawn(len(states_BNH), settings, generator).to(states_BNH.device)

        def read(first: int, count: int) -> Reading:
            if own is None:
                return read_alike(delta_BNH, count)
            deltas = [
                _own_delta(perturber, states_BNH, delta_BNH, own, k, settings)
                for k in range(first, first + count)
            ]
            return functools.reduce(Reading.beside, [read_alike(delta, 1) for delta in deltas])

        def read_alike(delta_BNH: Tensor, count: int) -> Reading:
            perturbed_BNH = states_BNH + delta_BNH  # both float32: see perturber.py
            return draw_and_read(
                backbone,
                perturbed_BNH,
                states_BNH,
                codes,
                rows,
                settings,
                count=count,
                sample=settings.sample_candidates or settings.num_candidates > 1,
                scorer=scorer,
                label_scorer=label_scorer,
                generator=generator,
            )

        learned = read(0, settings.learned_candidates)
        objective_B = perturber_objective(
            full_precision(learned.ce_BK),
            delta_BNH / perturber.scale(states_BNH).clamp(min=1e-12),
            lambda_norm=settings.lambda_norm,
            l2=settings.l2,
            tv=settings.tv,
            similarity_BK=learned.label_BK,
            label_weight=settings.label_weight,
            label_floor=settings.label_floor,
            content_weight=_content_weight(settings, content_weight_M, own),
            loss=settings.perturber_loss,
            ce_cap=settings.ce_cap,
        )
        if settings.diversity_weight and isinstance(perturber, Perturber):
            objective_B = objective_B - settings.diversity_weight * perturber.overlap(states_BNH)
        reading = learned.detach()
        left = settings.num_candidates - settings.learned_candidates
        at_once = max(1, (pictures_at_once or left * len(states_BNH)) // len(states_BNH))
        while left:
            count = min(left, at_once)
            with torch.no_grad():
                reading = reading.beside(read(settings.num_candidates - left, count))
            left -= count
    ce_BK, similarity_BK = reading.ce_BK.float(), reading.similarity_BK.float()
    result = ChallengeResult(
        objective=objective_B.mean(),
        ce_BK=ce_BK,
        right_BK=reading.right_BK,
        hardness_BK=hardness(ce_BK, similarity_BK, settings.clip_weight, settings.clip_floor),
        similarity_BK=similarity_BK,
        delta_BNH=delta_BNH.detach(),
        states_BNH=states_BNH,
        drawing=reading.drawing,
        tokens_ENH=reading.tokens_ENH,
        codes=codes,
        metrics={},
        backbone=backbone,
        own=own,
    )
    result.metrics = _metrics(result, perturber, settings, reading.label_BK)
    return result


def _content_weight(
    settings: SelfPlaySettings, content_weight_M: Tensor | None, own: OwnPerturbation | None
) -> float | Tensor:
    """One weight, or that of each learned candidate's head, (B, K)."""
    if content_weight_M is None:
        return settings.content_weight
    if own is None:
        return float(content_weight_M[0])
    head_BK = own.head_BK[:, : settings.learned_candidates]
    return content_weight_M.to(head_BK.device)[head_BK]


def perturber_step(
    result: ChallengeResult,
    perturber: PerturberBase,
    optimizer: torch.optim.Optimizer,
    max_norm: float = 1.0,
    reduce: Callable[[list[Tensor]], None] | None = None,
) -> float:
    """Update C by gradient *ascent* on ``result.objective``; nothing else receives a gradient.

    Args:
        result: of a challenge with gradient; its graph is freed.
        perturber: C. One without parameters is left as it is.
        optimizer: over C's parameters.
        max_norm: clip of C's gradient norm; the paper's is 1.0 per player.
        reduce: averages the gradients over ranks, in place.

    Returns:
        The norm before clipping; 0 where there is nothing to learn. If it is not finite, C stays
        as it is (on all ranks alike, since it is judged after ``reduce``).
    """
    gradients = perturber_gradients(result, perturber)
    return perturber_update(perturber, optimizer, gradients, max_norm, reduce)


def perturber_gradients(result: ChallengeResult, perturber: PerturberBase) -> list[Tensor]:
    """Gradients that *descend*, of minus the objective, for C's weights; frees the graph."""
    parameters = _learning(perturber)
    if not parameters:
        return []
    if not result.objective.requires_grad:
        raise ValueError("this challenge was made with with_grad=False: C cannot learn from it")
    # Gradient checkpointing runs the model again in backward: dropout must be off there, too.
    with result.backbone.without_dropout():
        gradients = list(torch.autograd.grad(-result.objective, parameters))
    result.objective = result.objective.detach()
    return gradients


def perturber_update(
    perturber: PerturberBase,
    optimizer: torch.optim.Optimizer,
    gradients: list[Tensor],
    max_norm: float = 1.0,
    reduce: Callable[[list[Tensor]], None] | None = None,
) -> float:
    """One optimizer step of C with ``gradients``; see ``perturber_step``."""
    parameters = _learning(perturber)
    if not parameters:
        return 0.0
    if reduce is not None:
        reduce(gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    norm = float(nn.utils.clip_grad_norm_(parameters, max_norm))
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _learning(perturber: PerturberBase) -> list[nn.Parameter]:
    return [p for p in perturber.parameters() if p.requires_grad]


@dataclass(frozen=True)
class MiningReport:
    """How a mining went: candidates looked at, accepted by the filter, and kept by the buffer."""

    candidates: int
    accepted: int
    kept: int

    @property
    def acceptance_rate(self) -> float:
        """Accepted share of the candidates."""
        return self.accepted / self.candidates if self.candidates else 0.0


def mine(
    result: ChallengeResult,
    batch: Rows,
    buffer: HardSampleBuffer,
    settings: SelfPlaySettings,
    step: int = 0,
    keep_tokens: bool = False,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> MiningReport:
    """Push the challenge's hard and still faithful candidates to the buffer. Draws nothing again.

    Args:
        result: of ``challenge`` on the same ``batch``.
        batch: gives each candidate its own question, true answer and id.
        buffer: keeps the hardest; its ``recent`` candidates set the hardness to reach.
        settings: of the challenge; ``accept`` and what belongs to it filter.
        step: training step, stored with the samples.
        keep_tokens: store what U read of each picture too, in the memory of the CPU, so that
            replaying it needs neither the decoder nor the vision encoder.
        gather: joins the hardness of all ranks' candidates, so that all have one quantile.
    """
    judged_E = candidate_hardness(result)
    buffer.recent.add(gather(judged_E) if gather is not None else judged_E)
    accepted_E = _accepted(result, settings, buffer).flatten()
    rows = accepted_E.nonzero().flatten()
    if result.drawing is not None:
        compact = result.drawing.compact.detach()[rows].cpu()
    else:
        compact = result.tokens_ENH[rows].float().cpu()  # float16 would round a small delta away
    keep_tokens = keep_tokens and result.drawing is not None
    tokens_ENH = result.tokens_ENH[rows].cpu() if keep_tokens else None
    num_candidates = result.ce_BK.shape[1]
    hardness_E = result.hardness_BK.flatten().tolist()
    similarity_E = result.similarity_BK.flatten().tolist()
    samples = []
    for i, row in enumerate(rows.tolist()):
        b = row // num_candidates
        samples.append(
            HardSample(
                compact=compact[i],
                question=batch.questions[b],
                answer=batch.answers[b],
                hardness=hardness_E[row],
                similarity=similarity_E[row],
                source=batch.ids[b],
                step=step,
                tokens=tokens_ENH[i].clone() if tokens_ENH is not None else None,
            )
        )
    kept = buffer.push(samples)
    return MiningReport(candidates=accepted_E.numel(), accepted=len(samples), kept=kept)


def _accepted(
    result: ChallengeResult, settings: SelfPlaySettings, buffer: HardSampleBuffer
) -> Tensor:
    hardness_BK, similarity_BK = result.hardness_BK, result.similarity_BK
    if settings.accept == "missed":
        return missed(similarity_BK, result.right_BK, hardness_BK, settings.clip_floor)
    recent = buffer.recent.values
    return accept(hardness_BK, similarity_BK, settings.hard_quantile, settings.clip_floor, recent)


def candidate_hardness(result: ChallengeResult) -> Tensor:
    """H of each candidate, (B*K,); NaN where it or the similarity cannot be judged."""
    hardness_E, similarity_E = result.hardness_BK.flatten(), result.similarity_BK.flatten()
    return hardness_E.float().masked_fill(~similarity_E.isfinite(), math.nan)


@torch.no_grad()
def teacher_forced_states(backbone: Backbone, rows: Rows) -> VisualStates:
    """z_hat of a batch, without dropout: what ``challenge`` computes where it is not given."""
    with backbone.without_dropout():
        return backbone.visual_states(rows.pictures, rows.prompt_argument, codes=rows.codes)


def _states(
    backbone: Backbone, rows: Rows, settings: SelfPlaySettings, visual: VisualStates | None
) -> tuple[Tensor, Tensor | None]:
    """What is to be perturbed, float32 and without graph, and the images' own codes."""
    with torch.no_grad():
        if not settings.draws:
            return full_precision(backbone.embed_images(rows.pictures)), None
        visual = visual or teacher_forced_states(backbone, rows)
        return full_precision(visual.states_BNH), visual.codes


def _own_delta(
    perturber: PerturberBase,
    states_BNH: Tensor,
    delta_BNH: Tensor,
    own: OwnPerturbation,
    k: int,
    settings: SelfPlaySettings,
) -> Tensor:
    """The perturbation of every sample's candidate k; ``delta_BNH`` is that of the first head."""
    if settings.heads > 1:
        delta_BNH = perturber(states_BNH, own.head_BK[:, k])
    return delta_BNH * own.strength_BK[:, k, None, None]


def _label_scorer(scorer: SimilarityScorer, settings: SelfPlaySettings) -> SimilarityScorer | None:
    """The scorer of the terms of content; None where they are off."""
    if not settings.uses_label:
        return None
    if isinstance(scorer, NoSimilarity):
        raise UserError(
            f"label_weight={settings.label_weight}, content_weight={settings.content_weight} "
            "without a similarity scorer: there is nothing to preserve the content by; use "
            "similarity 'cosine' or 'clip', or set both to 0"
        )
    return scorer


def _metrics(
    result: ChallengeResult,
    perturber: PerturberBase,
    settings: SelfPlaySettings,
    label_BK: Tensor | None,
) -> dict[str, float]:
    """Figures for logging, brought to the host in one transfer."""
    delta_norm_BN = result.delta_BNH.norm(dim=-1)
    if result.own is not None:
        delta_norm_BN = delta_norm_BN * result.own.strength_BK.mean(1, keepdim=True)
    relative_BN1 = delta_norm_BN[..., None] / token_rms(result.states_BNH).clamp(min=1e-12)
    values = {
        "objective": result.objective,
        "adversarial_ce": result.ce_BK.mean(),
        "attack_success": (~result.right_BK).float().mean(),
        "hardness": result.hardness_BK.mean(),
        "similarity": result.similarity_BK.mean(),
        "below_floor": (result.similarity_BK < settings.clip_floor).float().mean(),
        "eps": perturber.eps,
        "delta_norm": delta_norm_BN.mean(),
        "delta_relative": relative_BN1.mean(),
    }
    drawing, codes = result.drawing, result.codes
    if drawing is not None and codes is not None and not codes.is_floating_point():
        own = codes.repeat_interleave(settings.num_candidates, dim=0)
        values["codes_changed"] = (drawing.compact != own).float().mean()
    if label_BK is not None:
        penalty_BK = label_penalty(label_BK, settings.label_floor)
        values["label_penalty"] = penalty_BK.mean()
    device = result.ce_BK.device
    stacked = torch.stack([value.detach().float().to(device) for value in values.values()])
    return dict(zip(values, stacked.tolist(), strict=True))
