"""Training of a small BAGEL on the world from nothing, so that the game has something to play."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from unigame.backbones.base import Backbone

if TYPE_CHECKING:
    from alive_models import World


def train_flow(backbone: Backbone, world: World) -> None:
    """The image autoencoder first, and then everything else on answers and captions together.

    Half of the pictures to be read have been through the autoencoder: what it loses should not be
    what the attack lives on. Torch's random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _train_autoencoder(backbone, world, steps=300)
        _train_rest(backbone, world, steps=900)
    backbone.requires_grad_(False)
    backbone.eval()


def _train_rest(backbone: Backbone, world: World, steps: int) -> None:
    from unigame.backbones.bagel.model import BagelBackbone

    assert isinstance(backbone, BagelBackbone)
    codes = torch.cat([backbone.encode_images(part) for part in world.images.split(64)])
    redrawn = torch.cat([backbone.render(part) for part in codes.split(64)]).detach()
    backbone.requires_grad_(True)
    backbone.bagel.vae.requires_grad_(False)
    backbone.train()
    rng, parameters = np.random.default_rng(0), backbone.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(steps):
        index = rng.permutation(len(world.images))[:24].tolist()
        rows = world.rows(index)
        images = torch.cat([rows.images[:12], redrawn[index[12:]]])
        answer_B = backbone.answer_loss(images, rows.questions, rows.answers)
        flow_B = backbone.generation_loss(rows.images, rows.captions, codes=codes[index])
        optimizer.zero_grad()
        (answer_B.mean() + flow_B.mean()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(
                f"  {step:4d}  answer {answer_B.mean():.3f}  flow {flow_B.mean():.3f}", flush=True
            )


def _train_autoencoder(backbone: Backbone, world: World, steps: int) -> None:
    """To draw its pictures, with latents of deviation 1, as a flow wants them."""
    from unigame.backbones.bagel.model import BagelBackbone

    assert isinstance(backbone, BagelBackbone)
    model, rng = backbone.bagel, np.random.default_rng(1)
    model.vae.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.vae.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(steps):
        pixels = backbone.pixels.normalise(world.batch(24, rng).images)
        latents = model.encode(pixels)
        error = (model.decode(latents) - pixels).square().mean()
        optimizer.zero_grad()
        (error + 1e-3 * latents.square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"  {step:4d}  picture error {error:.4f}", flush=True)
    model.vae.requires_grad_(False)
    with torch.no_grad():
        # The scale goes into the weights around the latents, so that no setting holds it.
        factor = 1 / model.encode(backbone.pixels.normalise(world.images[:256])).std()
        last, first = model.vae.encoder.conv_out, model.vae.decoder.conv_in
        for weight in last.parameters():
            weight[: model.config.latent_shape[0]] *= factor
        first.weight /= factor
