"""The discrete step of autoregressive backbones: logits -> codes -> codebook vectors.

Straight-through: the forward pass uses the chosen code's vector, the backward pass the softmax
mixture of all vectors, so that a small change of the states moves the drawn pixels to first order.

Shape suffixes: B samples, K candidates, M = B*K rows, N image tokens, V codes, E code width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class DrawnCodes:
    """Codes (M, N) and their vectors (M, N, E), differentiable in the logits."""

    codes_MN: Tensor
    vectors_MNE: Tensor


class _StraightThrough(torch.autograd.Function):
    """Forward: the hard value, bit for bit. Backward: the gradient goes to the soft value."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[None, Tensor]:
        return None, grad


def gumbel_noise(like_BNV: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Standard Gumbel noise for ``count`` candidates, (B*count, N, V), row ``b * count + k``.

    The candidates' noise is taken from ``generator`` (on its own device) one after another, so
    that drawing K at once and drawing them in several calls gives the same pictures.
    """
    device = generator.device if generator is not None else like_BNV.device
    tiny = torch.finfo(like_BNV.dtype).tiny
    draws = []
    for _ in range(count):
        uniform = torch.rand(
            like_BNV.shape, generator=generator, device=device, dtype=like_BNV.dtype
        )
        draws.append(uniform.clamp_(min=tiny).log_().neg_().clamp_(min=tiny).log_().neg_())
    return torch.stack(draws, dim=1).flatten(0, 1).to(like_BNV.device)


@torch.no_grad()
def near_bias(codes_BN: Tensor, kinship_VD: Tensor, width: float) -> Tensor:
    """exp((c - 1) / width), (B, N, V), of each code's cosine c to the image's own code.

    1 for the own code, and the less the less a code has to do with it. The vectors are compared as
    they differ from their mean, which says nothing of any one of them.
    """
    unit_VD = F.normalize(kinship_VD.float() - kinship_VD.float().mean(0), dim=-1)
    return (((unit_VD[codes_BN.long()] @ unit_VD.T) - 1) / width).exp()


def draw_codes(
    logits_BNV: Tensor,
    codes_BN: Tensor,
    codebook_VE: Tensor,
    *,
    num_candidates: int = 1,
    anchor: float = 0.0,
    temperature: float = 1.0,
    sample: bool = False,
    generator: torch.Generator | None = None,
    hard: bool = True,
    anchor_width: float = 0.0,
    kinship_VD: Tensor | None = None,
) -> DrawnCodes:
    """Choose K codes per position from ``(logits + anchor * onehot(codes)) / temperature``.

    Args:
        logits_BNV: scores of the image head, float32 or float64.
        codes_BN: the image's own codes, toward which ``anchor`` biases the choice.
        codebook_VE: the vectors that the decoder reads.
        num_candidates: K; more than one means Gumbel draws.
        anchor: added to the logit of the image's own code, in nats.
        temperature: of the draws and of the mixture that carries the gradient.
        sample: Gumbel draw even when K is 1.
        generator: source of the Gumbel noise; None is torch's global one.
        hard: False puts the mixture in the forward pass too (a smooth map, for gradient checks).
        anchor_width: above 0, codes near the own one share in the anchor, see ``near_bias``.
        kinship_VD: a vector for each code that says what it means, for ``near_bias``.

    Raises:
        ValueError: ``num_candidates`` below 1 or ``temperature`` not above 0.
    """
    if num_candidates < 1:
        raise ValueError(f"num_candidates={num_candidates} draws nothing; give 1 or more")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} divides the logits; give a value above 0")
    index_BN1 = codes_BN.long().unsqueeze(-1)
    if anchor and anchor_width > 0 and kinship_VD is not None:
        logits_BNV = logits_BNV + anchor * near_bias(codes_BN, kinship_VD, anchor_width).to(
            logits_BNV
        )
    elif anchor:
        bias = torch.full_like(index_BN1, 1, dtype=logits_BNV.dtype) * anchor
        logits_BNV = logits_BNV.scatter_add(-1, index_BN1, bias)
    # A score for every code at every position: each copy of them that is saved shows in the clock.
    scores_MNV = logits_BNV if temperature == 1 else logits_BNV / temperature
    if num_candidates > 1:
        scores_MNV = scores_MNV.repeat_interleave(num_candidates, dim=0)
    if sample or num_candidates > 1:
        scores_MNV = gumbel_noise(logits_BNV, num_candidates, generator).add_(scores_MNV)
    chosen_MN = scores_MNV.argmax(-1)
    table_VE = codebook_VE.to(scores_MNV.dtype)
    if hard and not scores_MNV.requires_grad:  # the mixture would only carry a gradient
        return DrawnCodes(chosen_MN, table_VE[chosen_MN])
    with torch.autocast(scores_MNV.device.type, enabled=False):
        soft_MNE = scores_MNV.softmax(-1) @ table_VE
    vectors = _StraightThrough.apply(table_VE[chosen_MN], soft_MNE) if hard else soft_MNE
    return DrawnCodes(chosen_MN, vectors)
