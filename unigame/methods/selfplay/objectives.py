"""The paper's Eq. 4, 6 and 7 as pure functions of per-sample losses.

    B  samples in the batch    K  candidates drawn per sample
    N  image tokens            H  width of the language model

Nothing here knows a model. Losses stay per sample until the last line of each function.
"""

from __future__ import annotations

import torch
from torch import Tensor

SUREST = 1e-6
"""CE below which float32 holds nothing of it but rounding."""


def understanding_weights(
    is_hard_B: Tensor,
    beta: float,
    *,
    num_clean: Tensor | int | None = None,
    num_hard: Tensor | int | None = None,
) -> Tensor:
    """The weight of each sample in Eq. 6, (B,): 1 / clean count, or beta / hard count.

    Args:
        is_hard_B: bool, True for samples replayed from the buffer.
        beta: weight of the hard mean; the paper's is 0.5.
        num_clean: clean samples in the whole step, where this batch is only a part of it (gradient
            accumulation, several ranks). Default: those of this batch.
        num_hard: likewise for hard samples.
    """
    is_hard_B = is_hard_B.bool()
    clean = (~is_hard_B).sum() if num_clean is None else num_clean
    hard = is_hard_B.sum() if num_hard is None else num_hard
    # clamp: a side without samples has no weight to give, and must not divide by zero.
    clean_weight = 1.0 / torch.as_tensor(clean, device=is_hard_B.device).clamp(min=1)
    hard_weight = beta / torch.as_tensor(hard, device=is_hard_B.device).clamp(min=1)
    return torch.where(is_hard_B, hard_weight, clean_weight).float()


def understanding_loss(
    loss_B: Tensor,
    is_hard_B: Tensor,
    beta: float,
    *,
    num_clean: Tensor | int | None = None,
    num_hard: Tensor | int | None = None,
) -> Tensor:
    """L_U of Eq. 6: mean of the clean losses + beta * mean of the hard ones, a scalar.

    Without hard samples this is the plain mean, that is, supervised fine-tuning. See
    ``understanding_weights`` for the arguments.
    """
    weight_B = understanding_weights(is_hard_B, beta, num_clean=num_clean, num_hard=num_hard)
    return (weight_B * loss_B.float()).sum()


def squared_norm(delta_BNH: Tensor) -> Tensor:
    """Squared L2 norm of each token's delta, averaged over tokens, (B,)."""
    return delta_BNH.square().sum(dim=-1).mean(dim=-1)


def mean_square(delta_BNH: Tensor) -> Tensor:
    """Mean of the squared coordinates of delta, (B,): the l2 regulariser of the authors' code."""
    return delta_BNH.square().mean(dim=(-2, -1))


def token_total_variation(delta_BNH: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring tokens in raster order, (B,)."""
    if delta_BNH.shape[1] < 2:
        return delta_BNH.new_zeros(delta_BNH.shape[0])
    return delta_BNH.diff(dim=1).abs().mean(dim=(-2, -1))


def label_penalty(similarity: Tensor, label_floor: float) -> Tensor:
    """How far each candidate has drifted from its original: max(0, label_floor - similarity).

    At ``label_floor`` = 1 (a cosine's maximum) this is 1 - similarity, a pull at all times; lower,
    C is free within the floor and pulled back only beyond it. Any shape.
    """
    return (label_floor - similarity).clamp(min=0.0)


def log_shortfall(similarity: Tensor, label_floor: float) -> Tensor:
    """log(1 + how far each candidate is below the floor). Any shape.

    Where the similarity is a log-likelihood, as of a reader that is sure, it falls without end: as
    it is, a few lost pictures would outweigh all others.
    """
    return label_penalty(similarity, label_floor).log1p()


def log_odds(ce: Tensor) -> Tensor:
    """Log odds of a wrong answer, log((1 - p) / p) with p = exp(-ce). Any shape.

    The margin of Carlini & Wagner (arXiv 1608.04644) for a model of two outcomes: unlike the
    cross-entropy's, its gradient does not fade where the model is sure.
    """
    return ce.clamp(min=SUREST).expm1().log()


def perturber_objective(
    ce_BK: Tensor,
    delta_BNH: Tensor,
    *,
    lambda_norm: float = 0.0,
    l2: float = 0.0,
    tv: float = 0.0,
    similarity_BK: Tensor | None = None,
    label_weight: float = 0.0,
    label_floor: float = 1.0,
    content_weight: float | Tensor = 0.0,
    loss: str = "cross_entropy",
    ce_cap: float | None = None,
) -> Tensor:
    """L_C of Eq. 7 with its optional terms, per sample (B,); C *maximises* its mean.

    mean_K(min(CE, ce_cap)) - label_weight * mean_K(label_penalty)
    - content_weight * mean_K(log_shortfall) - lambda * ||delta||^2 - l2 * mean_square
    - tv * token_total_variation.

    No scalar multiplies the whole: an adaptive optimizer divides it out again, so it would be a
    knob connected to nothing. Every weight here trades one term against another.

    Args:
        ce_BK: cross-entropy of the true answer on each candidate.
        delta_BNH: the perturbation in units of eps (divided by ``perturber.scale(states)``), so
            that the weights mean the same on models with small and with large states.
        lambda_norm: lambda of Eq. 7.
        l2: weight of the mean square (authors' code: 1e-4).
        tv: weight of the total variation over tokens (authors' code: 1e-5).
        similarity_BK: differentiable similarity of each candidate to its original.
        label_weight: weight of the label-preservation term; 0 leaves it out.
        label_floor: see ``label_penalty``.
        content_weight: weight of ``log_shortfall``, one or each candidate's own, (B, K); 0 leaves
            it out.
        loss: ``"log_odds"``: of a wrong answer, in the place of CE.
        ce_cap: bound of each CE, or of each candidate's log odds; None: none.

    Raises:
        ValueError: ``label_weight`` or ``content_weight`` without ``similarity_BK``.
    """
    gain_BK = log_odds(ce_BK) if loss == "log_odds" else ce_BK
    objective_B = (gain_BK if ce_cap is None else gain_BK.clamp(max=ce_cap)).mean(dim=-1)
    for weight, term in ((label_weight, label_penalty), (content_weight, log_shortfall)):
        if isinstance(weight, Tensor) or weight > 0:
            if similarity_BK is None:
                raise ValueError("a term of content needs similarity_BK, differentiable")
            objective_B = objective_B - (weight * term(similarity_BK, label_floor)).mean(dim=-1)
    if lambda_norm:
        objective_B = objective_B - lambda_norm * squared_norm(delta_BNH)
    if l2:
        objective_B = objective_B - l2 * mean_square(delta_BNH)
    if tv:
        objective_B = objective_B - tv * token_total_variation(delta_BNH)
    return objective_B


def hardness(ce: Tensor, similarity: Tensor, clip_weight: float, clip_floor: float) -> Tensor:
    """H of Eq. 4 and F.2, per candidate: CE + clip_weight * max(0, clip_floor - similarity)."""
    return ce + clip_weight * (clip_floor - similarity).clamp(min=0.0)


def accept(
    hardness: Tensor,
    similarity: Tensor,
    quantile: float,
    floor: float,
    recent: Tensor | None = None,
) -> Tensor:
    """Which candidates may enter the buffer: hard *and* still the same picture. Bool, same shape.

    H at or above the ``quantile`` of recent candidates AND similarity at or above ``floor``. A
    candidate whose hardness or similarity is not finite is refused, and does not move the quantile.

    Args:
        hardness: H of this mining's candidates.
        similarity: of each to its original.
        quantile: tau.
        floor: of the similarity.
        recent: H of the candidates that the quantile is taken of, this mining's included. Default:
            of this mining's alone, which says little of a small one.
    """
    finite = hardness.isfinite() & similarity.isfinite()
    if not finite.any():
        return finite
    among = hardness[finite] if recent is None else recent
    threshold = torch.quantile(among.float(), quantile).to(hardness.device)
    return finite & (hardness.float() >= threshold) & (similarity >= floor)


def missed(similarity: Tensor, right: Tensor, hardness: Tensor, floor: float) -> Tensor:
    """Which candidates are verified *and* read wrong by U: similarity at or above ``floor``.

    Bool, same shape; what is not finite is refused.
    """
    finite = hardness.isfinite() & similarity.isfinite()
    return finite & (similarity >= floor) & ~right
