"""The discrete step of reading: an image tokenizer's latents -> nearest codes -> their embeddings.

The models that draw a picture as tokens of their vocabulary also read it as such: the language
model sees the embedding of the code nearest to each latent. ``read_codes`` passes a gradient to the
latents nevertheless, straight-through (Bengio et al., arXiv 1308.3432), by a soft choice of codes.
``codebook.py`` is the discrete step of drawing.

Shape suffixes: B samples, N codes of a picture, E code width, V codes, H width of the LM, P places
(B*N).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Scores of so many (place, code) pairs are in memory at once: half a GB in float32.
PAIRS = 1 << 27


def nearest_codes(latents_BNE: Tensor, codebook_VE: Tensor) -> Tensor:
    """The code nearest to each latent, (B, N)."""
    latents_PE = latents_BNE.detach().flatten(0, 1)
    parts = [_distances(part, codebook_VE).argmin(-1) for part in _split(latents_PE, codebook_VE)]
    return torch.cat(parts).view(latents_BNE.shape[:2])


def read_codes(
    embeds_BNH: Tensor, latents_BNE: Tensor, codebook_VE: Tensor, table_VH: Tensor
) -> Tensor:
    """Embeddings of the nearest codes, with a gradient to the latents they were chosen by.

    Straight-through: the forward pass is ``embeds_BNH`` itself. The backward pass is that of
    ``soft_codes``, in which a latent that moves toward a code moves the embedding toward that
    code's. It is computed when the gradient arrives, some places at a time, because all B * N * V
    scores do not fit.

    Args:
        embeds_BNH: embeddings of the nearest codes.
        latents_BNE: what the codes are the nearest to.
        codebook_VE: the codes' vectors.
        table_VH: the codes' embeddings.
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
