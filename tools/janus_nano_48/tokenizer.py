"""Stage 1: the image tokenizer, a ``JanusVQVAE`` that must keep what a picture means.

Auto-encoder -> k-means codebook -> quantised training with a unit-norm codebook (the class's
``decode`` normalises code vectors, its ``encode`` does not; with unit vectors both agree). A frozen
per-cell reader adds a term for colour and shape, because pixels alone let shapes blur together.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from unigame.synthetic.reader import object_match, read, truth
from unigame.synthetic.world import CELL_PX, COLOURS, GRID, SHAPES, Scene

from .common import (
    CODES,
    Log,
    broad_scenes,
    foreground,
    nano_config,
    pictures,
    portion,
    warm_cosine,
)

BATCH, FOREGROUND_WEIGHT = 16, 6.0


class CellReader(nn.Module):
    """A small CNN that names colour and shape of each 16 px cell (last class of each: nothing)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(64 * 16, 128),
            nn.GELU(),
        )
        self.colour = nn.Linear(128, len(COLOURS) + 1)
        self.shape = nn.Linear(128, len(SHAPES) + 1)

    def loss(self, images: Tensor, colour: Tensor, shape: Tensor) -> Tensor:
        """Mean CE over cells; ``images`` (B, 3, S, S), targets (B * 9,)."""
        cells = images.unfold(2, CELL_PX, CELL_PX).unfold(3, CELL_PX, CELL_PX)
        cells = cells.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, CELL_PX, CELL_PX)
        hidden = self.body(cells)
        return F.cross_entropy(self.colour(hidden), colour) + F.cross_entropy(
            self.shape(hidden), shape
        )


def cell_targets(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Colour and shape class of each cell, (B, 9) each."""
    colour = torch.full((len(scenes), GRID * GRID), len(COLOURS))
    shape = torch.full((len(scenes), GRID * GRID), len(SHAPES))
    for row, scene in enumerate(scenes):
        for t in scene.things:
            colour[row, t.cell] = list(COLOURS).index(t.colour)
            shape[row, t.cell] = SHAPES.index(t.shape)
    return colour, shape


def train_reader(images: Tensor, colour: Tensor, shape: Tensor, steps: int, log: Log) -> CellReader:
    """Train the per-cell reader on true pictures, then freeze it."""
    reader = CellReader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3)
    for step in range(steps):
        rows = torch.randint(len(images), (64,))
        loss = reader.loss(images[rows], colour[rows].view(-1), shape[rows].view(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * warm_cosine(step, steps)
    log(reader_loss=loss.item())
    return reader.requires_grad_(False)


def picture_loss(drawn: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 + 2 MSE + 0.5 gradient-L1, in the processor's [-1, 1] range."""
    difference = drawn - target
    loss = (weight * difference.abs()).mean() + 2 * (weight * difference**2).mean()
    for axis in (2, 3):
        loss = (
            loss
            + 0.5
            * (
                weight.narrow(axis, 1, target.shape[axis] - 1)
                * (drawn.diff(dim=axis) - target.diff(dim=axis)).abs()
            ).mean()
        )
    return loss


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


def latents(vq: JanusVQVAE, images: Tensor) -> Tensor:
    """Unit-norm encoder outputs (B, 8, 6, 6)."""
    return F.normalize(vq.quant_conv(vq.encoder(images)), dim=1)


@torch.no_grad()
def round_trip_match(vq: JanusVQVAE, scenes: list[Scene]) -> float:
    """Object match through the class's own ``encode`` -> ``decode``: the tokenizer's gate."""
    vq.eval()
    found = []
    for start in range(0, len(scenes), 64):
        images = pictures(scenes[start : start + 64]) * 2 - 1
        codes = vq.encode(images).image_tokens.view(len(images), -1)
        drawn = (vq.decode(codes).float() * 0.5 + 0.5).clamp(0, 1)
        found += [read(i) for i in drawn.permute(0, 2, 3, 1).numpy()]
    vq.train()
    return object_match(found, map(truth, scenes))


def train(folder: Path, seed: int, scale: float = 1.0) -> None:
    """Train the tokenizer and write ``tokenizer.safetensors`` to ``folder``."""
    steps = (portion(400, scale), portion(950, scale))  # auto-encoder, quantised
    torch.manual_seed(seed)
    log = Log(folder, "tokenizer")
    scenes = broad_scenes(portion(9000, scale), seed + 1, plain=0.75, noise=False)
    images, masks = pictures(scenes), foreground(scenes)
    colour, shape = cell_targets(scenes)
    check = broad_scenes(portion(500, scale), seed + 2, plain=1.1, noise=False)
    reader = train_reader(images, colour, shape, portion(300, scale), log)
    vq = JanusVQVAE(nano_config(64, 3, 0).vq_config).train()
    log(parameters=sum(p.numel() for p in vq.parameters()), images=len(images))
    codebook = vq.quantize.embedding.weight
    quantised = False
    for phase, (total, rate) in enumerate(zip(steps, (2e-3, 1.5e-3), strict=True)):
        quantised = phase == 1
        if quantised:
            start_codebook(vq, images, masks)
            log(kmeans_match=round_trip_match(vq, check))
        optimizer = torch.optim.AdamW(vq.parameters(), lr=rate, weight_decay=0.01)
        used = torch.zeros(CODES)
        for step in range(total):
            for group in optimizer.param_groups:
                group["lr"] = rate * warm_cosine(step, total)
            rows = torch.randint(len(images), (BATCH,))
            target = images[rows] * 2 - 1
            weight = 1 + (FOREGROUND_WEIGHT - 1) * masks[rows]
            z = latents(vq, target)
            if quantised:
                code = (z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]) @ codebook.T).argmax(1)
                used += torch.bincount(code, minlength=CODES)
                vector = F.normalize(codebook[code], dim=1).view(BATCH, *z.shape[2:], -1)
                vector = vector.permute(0, 3, 1, 2)
                vq_loss = F.mse_loss(vector, z.detach()) + 0.25 * F.mse_loss(z, vector.detach())
                entry = z + (vector - z).detach()
            else:
                vq_loss = torch.zeros(())
                entry = F.normalize(z + 0.05 * torch.randn_like(z), dim=1)
            drawn = vq.decoder(vq.post_quant_conv(entry))
            pixel = picture_loss(drawn, target, weight)
            # The reader is asked about what a viewer sees: clamped pixels in [0, 1].
            meaning = reader.loss(
                drawn * 0.5 + 0.5, colour[rows].reshape(-1), shape[rows].reshape(-1)
            )
            loss = pixel + 0.2 * meaning + 0.5 * vq_loss * z.shape[1]
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                codebook.copy_(F.normalize(codebook, dim=1))
            if quantised and step % 100 == 99:
                dead = used < 1
                if step < total // 2 and dead.any():  # reseed unused codes from live latents
                    pool = z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1])
                    picks = torch.randint(len(pool), (int(dead.sum()),))
                    codebook.data[dead] = pool[picks]
                log(
                    step=step + 1,
                    loss=loss.item(),
                    pixel=pixel.item(),
                    meaning=meaning.item(),
                    vq=vq_loss.item(),
                    dead=int(dead.sum()),
                    match=round_trip_match(vq, check),
                )
                used.zero_()
            elif step % 100 == 99:
                log(step=step + 1, loss=loss.item(), pixel=pixel.item(), meaning=meaning.item())
        save(vq, folder)
    fresh = broad_scenes(portion(2000, scale), seed + 3, plain=1.1, noise=False)
    log(gate="tokenizer", object_match=round_trip_match(vq, fresh), needed=0.99)


def refine(folder: Path, seed: int, scale: float = 1.0, rate: float = 1e-3) -> None:
    """Train the decoder alone, mostly on clean pictures; the codes of every picture stay the same.

    Encoder and codebook are frozen, so this may run before, after or beside the language stage.
    """
    torch.manual_seed(seed + 4)
    log = Log(folder, "decoder")
    steps = portion(320, scale)
    scenes = broad_scenes(portion(6000, scale), seed + 5, plain=0.85, noise=False)
    images, masks = pictures(scenes), foreground(scenes)
    colour, shape = cell_targets(scenes)
    reader = train_reader(images, colour, shape, portion(300, scale), log)
    vq = JanusVQVAE(nano_config(64, 3, 0).vq_config).train()
    load(vq, folder)
    weights = [*vq.decoder.parameters(), *vq.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01)
    codebook = F.normalize(vq.quantize.embedding.weight.detach(), dim=1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * warm_cosine(step, steps, warmup=20)
        rows = torch.randint(len(images), (BATCH,))
        target = images[rows] * 2 - 1
        with torch.no_grad():
            code = vq.encode(target).image_tokens.view(BATCH, *vq.quantize.quant_state_dims)
            entry = codebook[code].permute(0, 3, 1, 2)
        drawn = vq.decoder(vq.post_quant_conv(entry))
        pixel = picture_loss(drawn, target, 1 + (FOREGROUND_WEIGHT - 1) * masks[rows])
        meaning = reader.loss(drawn * 0.5 + 0.5, colour[rows].reshape(-1), shape[rows].reshape(-1))
        optimizer.zero_grad()
        (pixel + 0.3 * meaning).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 80 == 79:
            log(step=step + 1, pixel=pixel.item(), meaning=meaning.item())
    save(vq, folder)
    fresh = broad_scenes(portion(2000, scale), seed + 3, plain=1.1, noise=False)
    log(gate="tokenizer", object_match=round_trip_match(vq, fresh), needed=0.99)


@torch.no_grad()
def start_codebook(vq: JanusVQVAE, images: Tensor, masks: Tensor) -> None:
    """K-means over latents, with most of the (alike) background latents left out."""
    z = torch.cat([latents(vq, chunk * 2 - 1) for chunk in images[:5000].split(100)])
    points = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    busy = F.max_pool2d(masks[:5000], 8).reshape(-1) > 0
    keep = busy | (torch.rand(len(points)) < 1 / 10)
    vq.quantize.embedding.weight.copy_(kmeans(points[keep], CODES))


def save(vq: JanusVQVAE, folder: Path) -> None:
    """Write the tokenizer's weights."""
    state = {k: v.detach().contiguous().clone() for k, v in vq.state_dict().items()}
    save_file(state, folder / "tokenizer.safetensors")


def load(vq: JanusVQVAE, folder: Path) -> None:
    """Read the tokenizer's weights."""
    vq.load_state_dict(load_file(folder / "tokenizer.safetensors"))
