"""Train a tiny model that reads and draws pictures as tokens (Emu3, Chameleon), from scratch.

Image tokenizer first, then the language model on answers and on codes together: some minutes on one
core. ``train_tokens`` knows families only as ``AutoregressiveBackbone`` with ``token_V``, and their
image tokenizer as ``model.vqmodel``. Registered in ``alive_models.py``.

Shape suffixes: see ``unigame/backbones/base.py``; further P places (B*N), E code width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unigame.backbones.base import Backbone
from unigame.backbones.common.autoregressive import AutoregressiveBackbone
from unigame.backbones.common.codes import nearest_codes

TOKENIZER_BATCH, BATCH = 8, 24
OBJECT_WEIGHT = 6.0
"""Of a pixel that shows an object; most of a picture is plain background."""
COMMITMENT = 0.25


@dataclass(frozen=True)
class Training:
    """How long a family trains, and on what.

    Attributes:
        tokenizer_steps: of the image tokenizer.
        language_steps: of the rest.
        margin: px around an object that weigh as much as the object. Without them it is cheap to
            fill its outline, and crosses turn into discs.
    """

    tokenizer_steps: int = 600
    language_steps: int = 900
    margin: int = 0


def train_tokens(backbone: Backbone, world: Any, training: Training | None = None) -> None:
    """Move every weight: the image tokenizer on pictures, then the rest on answers and codes.

    Half of the pictures to be read have been through the tokenizer once: what it loses should not
    be what the attack lives on.

    Args:
        backbone: a tiny one, freshly made.
        world: a ``World`` of ``alive_models.py``.
        training: None is the default.
    """
    training = training or Training()
    assert isinstance(backbone, AutoregressiveBackbone)
    torch.manual_seed(0)
    train_tokenizer(backbone, world.images, training)
    codes_BN = _codes(backbone, world.images)
    with torch.no_grad():
        redrawn = torch.cat([backbone.render(part) for part in codes_BN.split(64)])
    print(f"  {len(codes_BN.unique())} codes in use", flush=True)
    train_language(backbone, world, codes_BN, _codes(backbone, redrawn), training.language_steps)


def train_tokenizer(backbone: AutoregressiveBackbone, images: Tensor, training: Training) -> None:
    """Auto-encoder for a third of the steps, then a codebook by k-means, then both together.

    The quantised part is that of van den Oord et al. 2017 (arXiv 1711.00937): straight-through,
    codebook loss, commitment loss. Codes that nothing uses are put where latents are.
    """
    rng, steps = np.random.default_rng(1), training.tokenizer_steps
    quantised_from = steps // 3
    vq = backbone.base.model.vqmodel.requires_grad_(True)
    optimizer = torch.optim.AdamW(vq.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    used_V = torch.zeros(len(backbone.codebook()))
    for step in range(steps):
        if step == quantised_from:
            _start_codebook(backbone, images)
        batch = images[rng.permutation(len(images))[:TOKENIZER_BATCH]]
        latents_BNE = backbone.image_features(batch)
        if step < quantised_from:
            vectors_BNE = latents_BNE + 0.05 * torch.randn_like(latents_BNE)
            quantisation = 1e-2 * latents_BNE.square().mean()
        else:
            vectors_BNE, quantisation = _quantise(backbone, latents_BNE, used_V)
        drawn = backbone.decode_vectors(vectors_BNE)
        loss = picture_error(drawn, batch, training.margin) + quantisation
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"  {step + 1:4d}  tokenizer {loss:.4f}", flush=True)
            if quantised_from <= step < 0.8 * steps:
                _revive(backbone, latents_BNE, used_V)
    vq.requires_grad_(False)


def train_language(
    backbone: AutoregressiveBackbone, world: Any, codes_BN: Tensor, again_BN: Tensor, steps: int
) -> None:
    """Everything but the image tokenizer, on answers and captions together.

    Args:
        backbone: with a trained image tokenizer.
        world: a ``World``.
        codes_BN: the codes of its pictures.
        again_BN: the codes of the same pictures after they were drawn from ``codes_BN``.
        steps: of the optimizer.
    """
    backbone.requires_grad_(True)
    backbone.base.model.vqmodel.requires_grad_(False)
    backbone.train()
    embed, token_V = backbone.base.get_input_embeddings(), backbone.get_buffer("token_V")
    rng, parameters = np.random.default_rng(0), backbone.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    for step in range(steps):
        index = rng.permutation(len(world.images))[:BATCH].tolist()
        rows, half = world.rows(index), BATCH // 2
        read_BN = torch.cat([codes_BN[index[:half]], again_BN[index[half:]]])
        embeds_BNH = embed(token_V[read_BN])
        answer_B = backbone.answer_loss(None, rows.questions, rows.answers, embeds=embeds_BNH)
        drawn_B = backbone.generation_loss(rows.images, rows.captions, codes=codes_BN[index])
        optimizer.zero_grad()
        (answer_B.mean() + drawn_B.mean()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(
                f"  {step + 1:4d}  answer {answer_B.mean():.3f}  codes {drawn_B.mean():.3f}",
                flush=True,
            )
    backbone.requires_grad_(False)
    backbone.eval()


def picture_error(drawn: Tensor, images: Tensor, margin: int) -> Tensor:
    """Absolute and squared error of (B, 3, S, S) pictures, objects and ``margin`` px weighing more.

    Backgrounds are plain and no object reaches the corner, so what differs from the corner's pixel
    is an object.
    """
    away = (images - images[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.1
    near = F.max_pool2d(away.to(images), 2 * margin + 1, stride=1, padding=margin)
    weight = 1 + (OBJECT_WEIGHT - 1) * near
    error = drawn - images
    return (weight * error.abs()).mean() + 4 * (weight * error.square()).mean()


@torch.no_grad()
def _codes(backbone: AutoregressiveBackbone, images: Tensor) -> Tensor:
    return torch.cat([backbone.encode_images(part) for part in images.split(64)])


def _quantise(
    backbone: AutoregressiveBackbone, latents_BNE: Tensor, used_V: Tensor
) -> tuple[Tensor, Tensor]:
    """Nearest vectors, straight-through, and what pulls vectors and latents together."""
    codes_BN = nearest_codes(latents_BNE, backbone.codebook())
    used_V += torch.bincount(codes_BN.flatten(), minlength=len(used_V))
    vectors_BNE = backbone.codebook()[codes_BN]
    pull = F.mse_loss(vectors_BNE, latents_BNE.detach())
    commit = F.mse_loss(latents_BNE, vectors_BNE.detach())
    return latents_BNE + (vectors_BNE - latents_BNE).detach(), pull + COMMITMENT * commit


@torch.no_grad()
def _start_codebook(backbone: AutoregressiveBackbone, images: Tensor, rounds: int = 15) -> None:
    """K-means over the latents of some hundred pictures."""
    parts = [backbone.image_features(part) for part in images[:512].split(64)]
    points_PE = torch.cat(parts).flatten(0, 1)
    codebook_VE = backbone.codebook()
    codebook_VE.copy_(points_PE[torch.randperm(len(points_PE))[: len(codebook_VE)]])
    for _ in range(rounds):
        owner_P = nearest_codes(points_PE[None], codebook_VE)[0]
        sums_VE = torch.zeros_like(codebook_VE).index_add_(0, owner_P, points_PE)
        count_V = torch.bincount(owner_P, minlength=len(codebook_VE))
        filled_V = count_V > 0
        codebook_VE[filled_V] = sums_VE[filled_V] / count_V[filled_V, None]


@torch.no_grad()
def _revive(backbone: AutoregressiveBackbone, latents_BNE: Tensor, used_V: Tensor) -> None:
    """Move codes that were not used lately onto latents of this batch."""
    dead_V = used_V == 0
    points_PE = latents_BNE.flatten(0, 1)
    chosen = torch.randint(len(points_PE), (int(dead_V.sum()),))
    backbone.codebook()[dead_V] = points_PE[chosen]
    used_V.zero_()
