"""The two discrete steps of pictures made of codes, each with a straight-through gradient.

Drawing: logits -> codes -> codebook vectors. The forward pass uses the chosen code's vector, the
backward pass the softmax mixture of all vectors, so that a small change of the states moves the
drawn pixels to first order. Reading: an image tokenizer's latents -> nearest codes -> their
embeddings, with the gradient of a soft choice of codes (Bengio et al., arXiv 1308.3432).

Shape suffixes: B samples, K candidates, M = B*K rows, N codes of a picture, V codes, E code width,
H width of the LM, P places (B*N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PAIRS = 1 << 27
"""(Place, code) pairs whose scores reading has in memory at once: half a GB in float32."""


# ---- drawing -------------------------------------------------------------------------------------
@dataclass
class DrawnCodes:
    """Codes (M, N) and their vectors (M, N, E), differentiable in the logits."""

    codes_MN: Tensor
    vectors_MNE: Tensor


class _StraightThrough(torch.autograd.Function):
    """Forward: the hard value, bit for bit. Backward: the gradient goes to the soft value."""

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, grad


def gumbel_noise(like_BNV: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Standard Gumbel noise for ``count`` candidates, (B*count, N, V), row ``b * count + k``.

    Taken from ``generator`` (on its own device) one candidate after another: drawing K at once
    equals drawing them in several calls.
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
        codes_BN: the image's own codes, toward which ``anchor`` (in nats) biases the choice.
        codebook_VE: the vectors that the decoder reads.
        num_candidates: K; more than one means Gumbel draws.
        anchor: see ``codes_BN``.
        temperature: of the draws and of the mixture that carries the gradient.
        sample: Gumbel draw even when K is 1.
        generator: of the Gumbel noise; None is torch's global one.
        hard: False puts the mixture in the forward pass too (a smooth map, for gradient checks).
        anchor_width: above 0, codes near the own one share in the anchor; see ``near_bias``.
        kinship_VD: a vector for each code that says what it means, for ``near_bias``.

    Raises:
        ValueError: ``num_candidates`` below 1 or ``temperature`` not above 0.
    """
    if num_candidates < 1:
        raise ValueError(f"num_candidates={num_candidates} draws nothing; give 1 or more")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} divides the logits; give a value above 0")
    if anchor and anchor_width > 0 and kinship_VD is not None:
        bias_BNV = near_bias(codes_BN, kinship_VD, anchor_width)
        logits_BNV = logits_BNV + anchor * bias_BNV.to(logits_BNV)
    elif anchor:
        index_BN1 = codes_BN.long().unsqueeze(-1)
        bias = torch.full_like(index_BN1, 1, dtype=logits_BNV.dtype) * anchor
        logits_BNV = logits_BNV.scatter_add(-1, index_BN1, bias)
    # A score for every code at every position: each copy of them that is saved costs time.
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


# ---- reading -------------------------------------------------------------------------------------
def nearest_codes(latents_BNE: Tensor, codebook_VE: Tensor) -> Tensor:
    """The code nearest to each latent, (B, N)."""
    latents_PE = latents_BNE.detach().flatten(0, 1)
    parts = [_distances(part, codebook_VE).argmin(-1) for part in _split(latents_PE, codebook_VE)]
    return torch.cat(parts).view(latents_BNE.shape[:2])


def read_codes(
    embeds_BNH: Tensor, latents_BNE: Tensor, codebook_VE: Tensor, table_VH: Tensor
) -> Tensor:
    """Embeddings of the nearest codes, with a gradient to the latents they were chosen by.

    Forward: ``embeds_BNH`` itself. Backward: that of ``soft_codes``, in which a latent that moves
    toward a code moves the embedding toward that code's (``table_VH``). It is computed when the
    gradient arrives, some places at a time, because all B * N * V scores do not fit.
    """
    if not latents_BNE.requires_grad:
        return embeds_BNH
    return _ReadCodes.apply(embeds_BNH, latents_BNE, codebook_VE, table_VH)


def soft_codes(latents_BNE: Tensor, codebook_VE: Tensor, table_VH: Tensor) -> Tensor:
    """Mixture of all embeddings by the softmax of -distance^2 / scale: a smooth map, (..., H).

    The scale is the codebook's total variance times V ** (-2 / E): about the squared distance
    between neighbours of V points spread over E dimensions. Then a handful of codes near the
    latent share the weight; a much smaller scale would give no gradient, a much larger one the
    gradient of a mean over colours and textures that have nothing to do with the picture.
    """
    size, width = codebook_VE.shape
    scale = codebook_VE.var(0, correction=0).sum() * size ** (-2 / width)
    weights = (-_distances(latents_BNE, codebook_VE) / scale).softmax(-1)
    return weights.to(table_VH.dtype) @ table_VH


class _ReadCodes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, embeds_BNH: Tensor, latents_BNE: Tensor, codebook_VE: Tensor, table_VH: Tensor
    ) -> Tensor:
        ctx.save_for_backward(latents_BNE, codebook_VE, table_VH)
        return embeds_BNH.clone()

    @staticmethod
    def backward(ctx: Any, grad_BNH: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        latents_BNE, codebook_VE, table_VH = (t.detach() for t in ctx.saved_tensors)
        parts = _split(latents_BNE.flatten(0, 1), codebook_VE)
        grads = grad_BNH.flatten(0, 1).split(len(parts[0]))
        found = []
        with torch.autocast(grad_BNH.device.type, enabled=False), torch.enable_grad():
            for part, grad in zip(parts, grads, strict=True):
                latents = part.requires_grad_()
                mixture = soft_codes(latents, codebook_VE, table_VH)
                found.append(torch.autograd.grad(mixture, latents, grad.to(mixture.dtype))[0])
        return grad_BNH, torch.cat(found).view_as(latents_BNE), None, None


def _distances(latents_PE: Tensor, codebook_VE: Tensor) -> Tensor:
    """Squared distance of every latent to every code, (..., V), by the class's own formula.

    Outside autocast: neighbouring codes may lie nearer than a bfloat16 product is wrong by.
    """
    with torch.autocast(latents_PE.device.type, enabled=False):
        both = latents_PE.square().sum(-1, keepdim=True) + codebook_VE.square().sum(-1)
        return both - 2 * latents_PE @ codebook_VE.T


def _split(latents_PE: Tensor, codebook_VE: Tensor) -> list[Tensor]:
    return list(latents_PE.split(max(1, PAIRS // len(codebook_VE))))
