"""Stage 2: the image tokenizer, a ``JanusVQVAE`` that keeps a picture's content *and* its style.

Auto-encoder -> k-means codebook -> quantised training with a unit-norm codebook (the class's
``decode`` normalises code vectors, its ``encode`` does not; with unit vectors both agree). All
styles are shown from first to last: a last stage on clean pictures would teach it to clean them.
Faint pictures weigh up to six times, or their error would count for nothing; backgrounds count
where something is to be seen on them. Two terms beside pixels: a frozen per-cell reader asks for
colour and shape; and the frozen vision encoder asks that the drawn picture be seen as the true one
is, measured by how much there is to see in it, since that is what "faithful" means to the model.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from unigame.synthetic.reader import object_match, read, truth
from unigame.synthetic.world import Scene

from . import vision
from .common import (
    CODES,
    FAR,
    MIXED,
    PATCH_PX,
    STYLES,
    Log,
    broad_scenes,
    foreground,
    nano_config,
    pictures,
    portion,
    style_of,
    styled,
    warm_cosine,
)
from .progress import Loop, chance
from .reader import CellReader, cell_loss, cell_targets, fit

BATCH = 12
FLAT_WEIGHT, BUSY_WEIGHT = 5.0, 2.0
"""How much a pixel of an object counts beside one of a flat background, and of a busy one."""
READER_WEIGHT, SEEN_WEIGHT, CODE_WEIGHT = 0.15, 1.0, 0.5
AUTOENCODER, QUANTISED = 300, 1500  # steps
BUSY = ("noise", "occlusion", "texture")


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


def match(vq: JanusVQVAE, scenes: list[Scene]) -> float:
    """Object match of redrawn pictures."""
    drawn = redraw(vq, pictures(scenes)).permute(0, 2, 3, 1).numpy()
    return object_match([read(i) for i in drawn], map(truth, scenes))


def new(folder: Path | None = None) -> JanusVQVAE:
    """A tokenizer, with the weights in ``folder`` if there is one."""
    vq = JanusVQVAE(nano_config(64, 3, 0).vq_config)
    if folder is not None:
        vq.load_state_dict(load_file(folder / "tokenizer.safetensors"))
    return vq


class Targets:
    """The pictures, and what each loss term needs of them."""

    def __init__(self, folder: Path, seed: int, scale: float, log: Log) -> None:
        scenes = [
            *broad_scenes(portion(3500, scale), seed + 1, clean=0.3, counts=MIXED),
            *broad_scenes(portion(3500, scale), seed + 6, clean=0.2, severity=FAR, counts=MIXED),
        ]
        scenes = [scenes[i] for i in torch.randperm(len(scenes)).tolist()]
        self.images, self.masks = pictures(scenes), foreground(scenes)
        self.busy = torch.tensor([style_of(s) in BUSY for s in scenes])
        self.weight = torch.where(self.busy, BUSY_WEIGHT, FLAT_WEIGHT)
        self.colour, self.shape = cell_targets(scenes)
        self.faint = (0.16 / self.images.std((1, 2, 3)).clamp(min=0.025)).clamp(1, 6)
        self.reader = fit(CellReader(), portion(5000, scale), portion(300, scale), seed + 2, log)
        self.tower = vision.Tower().eval().requires_grad_(False)
        vision.load(self.tower, folder)
        with torch.no_grad():
            seen = torch.cat([self.tower(c) for c in self.images[:1000].split(100)])
        self.seen_variance = seen.flatten(0, 1).var(0)

    def loss(self, drawn: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels, what the reader says, and what the vision encoder sees; ``drawn`` in [-1, 1]."""
        true = self.images[rows]
        objects = (self.weight[rows] - 1).view(-1, 1, 1, 1) * self.masks[rows]
        weight = self.faint[rows].view(-1, 1, 1, 1) * (1 + objects)
        shown = (drawn * 0.5 + 0.5).clamp(0, 1)
        with torch.no_grad():
            wanted = self.tower(true)
            there = (wanted - wanted.mean(1, keepdim=True)).square() / self.seen_variance
        error = (self.tower(shown) - wanted).square() / self.seen_variance
        parts = {
            "pixel": picture_loss(drawn, true * 2 - 1, weight),
            "meaning": cell_loss(self.reader(shown), self.colour[rows], self.shape[rows]),
            "seen": (error.mean((1, 2)) / there.mean((1, 2)).clamp(min=0.15)).mean(),
        }
        weights = {"pixel": 1.0, "meaning": READER_WEIGHT, "seen": SEEN_WEIGHT}
        return torch.stack([weights[k] * v for k, v in parts.items()]).sum(), parts


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
    targets = Targets(folder, seed, scale, log)
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
            log(kmeans_match=match(vq, check))
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
            log(step=step + 1, match=match(vq, check))
            vq.train()
            save(vq, folder)
    save(vq, folder)
    log(**faithful(vq, targets.tower, seed, scale))


@torch.no_grad()
def faithful(
    vq: JanusVQVAE, tower: vision.Tower, seed: int, scale: float = 1.0
) -> dict[str, float]:
    """Object match on clean pictures, and per style how differently a redrawn one is seen.

    ``seen_STYLE`` is the feature error as a share of the features' variance.
    """
    figures = {"match": match(vq, broad_scenes(portion(600, scale), seed + 4, clean=1.0))}
    for style in STYLES:
        rng, _ = chance(seed + 5, STYLES.index(style))
        true = pictures([styled(style, rng, FAR) for _ in range(portion(100, scale))])
        drawn = redraw(vq, true)
        a, b = tower(true).flatten(0, 1), tower(drawn).flatten(0, 1)
        figures[f"seen_{style}"] = ((a - b).square().mean(0) / a.var(0)).mean().item()
        figures[f"spread_{style}"] = (drawn.std() / true.std()).item()
    return figures


def save(vq: JanusVQVAE, folder: Path) -> None:
    """Write the tokenizer's weights."""
    state = {k: v.detach().contiguous().clone() for k, v in vq.state_dict().items()}
    save_file(state, folder / "tokenizer.safetensors")
