"""Stage 2: the image tokenizer, a ``JanusVQVAE`` that keeps a picture's content *and* its style.

Auto-encoder -> k-means codebook -> quantised training with a unit-norm codebook (the class's
``decode`` normalises code vectors, its ``encode`` does not; with unit vectors both agree). What is
asked of a drawn picture is in ``tools.common.faithful``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from tools.common.faithful import Targets, faithful, match
from tools.common.pictures import PATCH_PX, broad_scenes
from tools.common.progress import Log, Loop, chance, portion, warm_cosine

from . import vision
from .config import CODES, nano_config

BATCH = 12
CODE_WEIGHT = 0.5
AUTOENCODER, QUANTISED = 300, 1500  # steps


def latents(vq: JanusVQVAE, images: Tensor) -> Tensor:
    """Unit-norm encoder outputs (B, 8, 9, 9) of pictures in [-1, 1]."""
    return F.normalize(vq.quant_conv(vq.encoder(images)), dim=1)


@torch.no_grad()
def redraw(vq: JanusVQVAE, images: Tensor) -> Tensor:
    """Pictures in [0, 1] through the class's own ``encode`` and ``decode``."""
    vq.eval()
    drawn = []
    for chunk in images.split(64):
        codes = vq.encode(chunk * 2 - 1).image_tokens.view(len(chunk), -1)
        drawn.append((vq.decode(codes).float() * 0.5 + 0.5).clamp(0, 1))
    return torch.cat(drawn)


def new(folder: Path | None = None) -> JanusVQVAE:
    """A tokenizer, with the weights in ``folder`` if there is one."""
    vq = JanusVQVAE(nano_config(64, 3, 0).vq_config)
    if folder is not None:
        vq.load_state_dict(load_file(folder / "tokenizer.safetensors"))
    return vq


def kmeans(points: Tensor, count: int, rounds: int = 25) -> Tensor:
    """Spherical k-means: ``count`` unit-norm centres of unit-norm points."""
    first = torch.randperm(len(points))[:count]
    if len(points) < count:  # a trial run with a handful of pictures
        first = torch.randint(len(points), (count,))
    centres = points[first].clone()
    for _ in range(rounds):
        owner = torch.cat([(chunk @ centres.T).argmax(1) for chunk in points.split(8192)])
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        empty = sums.norm(dim=1) < 1e-6
        sums[empty] = points[torch.randint(len(points), (int(empty.sum()),))]
        centres = F.normalize(sums, dim=1)
    return centres


@torch.no_grad()
def start_codebook(vq: JanusVQVAE, targets: Targets) -> None:
    """K-means over latents, with most of the (alike) latents of flat backgrounds left out."""
    images, masks = targets.images[:2500], targets.masks[:2500]
    z = torch.cat([latents(vq, chunk * 2 - 1) for chunk in images.split(100)])
    points = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    busy = F.max_pool2d(masks, PATCH_PX).reshape(-1) > 0
    each = len(points) // len(images)
    share = torch.where(targets.busy[: len(images)], 1 / 2, 1 / 8).repeat_interleave(each)
    keep = busy | (torch.rand(len(points)) < share)
    vq.quantize.embedding.weight.copy_(kmeans(points[keep], CODES, 12))


def train(folder: Path, seed: int, scale: float = 1.0, rate: float = 2e-3) -> None:
    """Train the tokenizer and write ``tokenizer.safetensors`` to ``folder``."""
    torch.manual_seed(seed)
    log = Log(folder, "tokenizer")
    targets = Targets(folder, vision.Tower(), seed, scale, log)
    first, total = portion(AUTOENCODER, scale), portion(AUTOENCODER + QUANTISED, scale)
    check = broad_scenes(portion(200, scale), seed + 3, clean=1.0)
    vq = new().train()
    log(parameters=sum(p.numel() for p in vq.parameters()), images=len(targets.images))
    codebook = vq.quantize.embedding.weight
    used = torch.zeros(CODES)
    optimizer = torch.optim.AdamW(vq.parameters(), lr=rate, weight_decay=0.01)
    loop = Loop(folder, "tokenizer", vq, optimizer, lambda s: rate * warm_cosine(s, total, 30), log)
    for step in loop.steps(total):
        if step == first:
            start_codebook(vq, targets)
            log(kmeans_match=match(partial(redraw, vq), check))
            vq.train()
        _, generator = chance(seed, step)
        rows = torch.randint(len(targets.images), (BATCH,), generator=generator)
        z = latents(vq, targets.images[rows] * 2 - 1)
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        if step >= first:
            code = (flat @ codebook.T).argmax(1)
            used += torch.bincount(code, minlength=CODES)
            vector = F.normalize(codebook[code], dim=1).view(BATCH, *z.shape[2:], -1)
            vector = vector.permute(0, 3, 1, 2)
            code_loss = F.mse_loss(vector, z.detach()) + 0.25 * F.mse_loss(z, vector.detach())
            entry = z + (vector - z).detach()
        else:
            code_loss = torch.zeros(())
            noise = torch.randn(z.shape, generator=generator)
            entry = F.normalize(z + 0.05 * noise, dim=1)
        loss, parts = targets.loss(vq.decoder(vq.post_quant_conv(entry)), rows)
        loop.descend(loss + CODE_WEIGHT * code_loss * z.shape[1])
        with torch.no_grad():
            codebook.copy_(F.normalize(codebook, dim=1))
            if step >= first and step % 100 == 99 and step < total - 300:
                dead = used < 1  # reseed unused codes from live latents
                picks = torch.randint(len(flat), (int(dead.sum()),), generator=generator)
                codebook[dead] = flat[picks]
                log(dead=int(dead.sum()))
                used.zero_()
        if step % 50 == 49:
            log(step=step + 1, codes=code_loss.item(), **{k: v.item() for k, v in parts.items()})
        if step % 200 == 199 and step >= first:
            log(step=step + 1, match=match(partial(redraw, vq), check))
            vq.train()
            save(vq, folder)
    save(vq, folder)
    log(**faithful(partial(redraw, vq), targets.tower, seed, scale))


def save(vq: JanusVQVAE, folder: Path) -> None:
    """Write the tokenizer's weights."""
    state = {k: v.detach().contiguous().clone() for k, v in vq.state_dict().items()}
    save_file(state, folder / "tokenizer.safetensors")
