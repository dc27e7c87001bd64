"""What a redrawn picture must keep, for both kinds of image tokenizers: content *and* style.

All styles are shown from first to last: a last stage on clean pictures would teach a tokenizer to
clean them. Faint pictures weigh up to six times, or their error would count for nothing;
backgrounds count where something is to be seen on them. Two terms beside pixels: a frozen per-cell
reader asks for colour and shape; and the frozen vision encoder asks that the drawn picture be seen
as the true one is, measured by how much there is to see in it, since that is what "faithful" means
to the model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from unigame.synthetic.reader import object_match, read, truth
from unigame.synthetic.world import Scene

from . import vision
from .pictures import (
    FAR,
    MIXED,
    STYLES,
    broad_scenes,
    foreground,
    pictures,
    style_of,
    styled,
)
from .progress import Log, chance, portion
from .reader import CellReader, cell_loss, cell_targets, fit

FLAT_WEIGHT, BUSY_WEIGHT = 5.0, 2.0
"""How much a pixel of an object counts beside one of a flat background, and of a busy one."""
READER_WEIGHT, SEEN_WEIGHT = 0.15, 1.0
BUSY = ("noise", "occlusion", "texture")
Redraw = Callable[[Tensor], Tensor]
"""Pictures (B, 3, 36, 36) in [0, 1] through an image tokenizer and back."""


def match(redraw: Redraw, scenes: list[Scene]) -> float:
    """Object match of redrawn pictures."""
    drawn = redraw(pictures(scenes)).permute(0, 2, 3, 1).numpy()
    return object_match([read(i) for i in drawn], map(truth, scenes))


class Targets:
    """The pictures, and what each loss term needs of them."""

    def __init__(self, folder: Path, tower: nn.Module, seed: int, scale: float, log: Log) -> None:
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
        self.tower = tower.eval().requires_grad_(False)
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
def faithful(redraw: Redraw, tower: nn.Module, seed: int, scale: float = 1.0) -> dict[str, float]:
    """Object match on clean pictures, and per style how differently a redrawn one is seen.

    ``seen_STYLE`` is the feature error as a share of the features' variance.
    """
    figures = {"match": match(redraw, broad_scenes(portion(600, scale), seed + 4, clean=1.0))}
    for style in STYLES:
        rng, _ = chance(seed + 5, STYLES.index(style))
        true = pictures([styled(style, rng, FAR) for _ in range(portion(100, scale))])
        drawn = redraw(true)
        a, b = tower(true).flatten(0, 1), tower(drawn).flatten(0, 1)
        figures[f"seen_{style}"] = ((a - b).square().mean(0) / a.var(0)).mean().item()
        figures[f"spread_{style}"] = (drawn.std() / true.std()).item()
    return figures
