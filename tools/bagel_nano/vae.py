"""Stage 2: the image autoencoder, an ``AutoencoderKL`` that keeps a picture's content and style.

The published weight file has no place for a scale of latents: it is FLUX's. So the encoder is
started, and held by a small loss, such that scaled latents have mean 0 and deviation 1 in every
channel. The decoder is shown latents with noise on them, of a deviation between 0 and ``NOISE``:
drawn latents are never exactly right, and what lies near a picture must be that picture. What is
asked of a drawn picture is in ``tools.common.faithful``.

The encoder's own spread is not learned: ``encode`` takes the middle. It says ``SPREAD``.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.common.faithful import Targets, faithful, match
from tools.common.pictures import broad_scenes
from tools.common.progress import Log, Loop, chance, portion, warm_cosine
from unigame.backbones.bagel.vae import build_vae

from . import decisions, vision
from .config import CHANNELS, nano_config

BATCH, STEPS, RATE = 12, 1170, 1.5e-3
NOISE, SPREAD, MOMENTS_WEIGHT = 0.3, 0.05, 0.1


def new(folder: Path | None = None) -> Any:
    """An autoencoder, with the weights in ``folder`` if there is one."""
    vae = build_vae(nano_config(8).vae_config)
    if folder is not None:
        vae.load_state_dict(load_file(folder / "vae.safetensors"))
    return vae


def latents(vae: Any, images: Tensor) -> Tensor:
    """Scaled latents (B, C, 18, 18) of pictures in [0, 1]."""
    mode = vae.encode(images * 2 - 1).latent_dist.mode()
    return (mode - vae.config.shift_factor) * vae.config.scaling_factor


def decode(vae: Any, scaled: Tensor) -> Tensor:
    """Pictures around [-1, 1] of scaled latents."""
    return vae.decode(scaled / vae.config.scaling_factor + vae.config.shift_factor).sample


@torch.no_grad()
def redraw(vae: Any, images: Tensor) -> Tensor:
    """Pictures in [0, 1] through the autoencoder."""
    vae.eval()
    chunks = images.split(64)
    return torch.cat([(decode(vae, latents(vae, c)) * 0.5 + 0.5).clamp(0, 1) for c in chunks])


@torch.no_grad()
def start_scale(vae: Any, images: Tensor) -> None:
    """Latents of mean 0 and deviation 1, and a decoder that is used to them."""
    last, first = vae.encoder.conv_out, vae.decoder.conv_in
    last.weight[CHANNELS:].zero_()
    last.bias[CHANNELS:] = 2 * math.log(SPREAD / vae.config.scaling_factor)
    before = latents(vae, images)
    mean, spread = before.mean((0, 2, 3)), before.std((0, 2, 3))
    last.weight[:CHANNELS] /= spread.view(-1, 1, 1, 1)
    middle = vae.config.shift_factor
    bias = last.bias[:CHANNELS] - middle - mean / vae.config.scaling_factor
    last.bias[:CHANNELS] = bias / spread + middle
    first.weight *= vae.config.scaling_factor


def train(folder: Path, seed: int, scale: float = 1.0, steps: int = STEPS) -> None:
    """Train the autoencoder and write ``vae.safetensors`` to ``folder``."""
    torch.manual_seed(seed)
    log = Log(folder, "vae")
    targets = Targets(folder, vision.Tower(), seed, scale, log)
    total, check = portion(steps, scale), broad_scenes(portion(200, scale), seed + 3, clean=1.0)
    vae = new().train()
    start_scale(vae, targets.images[:64])
    log(parameters=sum(p.numel() for p in vae.parameters()), images=len(targets.images))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=RATE, weight_decay=0.01)
    loop = Loop(folder, "vae", vae, optimizer, lambda s: RATE * warm_cosine(s, total, 30), log)
    for step in loop.steps(total):
        _, generator = chance(seed, step)
        rows = torch.randint(len(targets.images), (BATCH,), generator=generator)
        scaled = latents(vae, targets.images[rows])
        noise = torch.randn(scaled.shape, generator=generator)
        level = NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator)
        loss, parts = targets.loss(decode(vae, scaled + level * noise), rows)
        mean, spread = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))
        moments = (mean.square() + (spread - 1).square()).mean()
        loop.descend(loss + MOMENTS_WEIGHT * moments)
        if step % 50 == 49:
            spreads = spread.detach().mean().item()
            log(step=step + 1, spread=spreads, **{k: v.item() for k, v in parts.items()})
        if step % 300 == 299:
            log(step=step + 1, match=match(partial(redraw, vae), check))
            vae.train()
    save(vae, folder)
    figures = faithful(partial(redraw, vae), targets.tower, seed, scale)
    log(**figures, decision=decisions.of_autoencoder(figures))


def save(vae: Any, folder: Path) -> None:
    """Write the autoencoder's weights."""
    state = {name: value.detach().contiguous() for name, value in vae.state_dict().items()}
    save_file(state, folder / "vae.safetensors")
