"""Per-cell readers at 36 px: they say which colour and shape each cell of a picture shows.

Two of them, which share nothing but the world: ``CellReader`` sees one cell at a time and helps to
train the tokenizer; ``Verifier`` sees the whole picture at a normalised contrast, is trained with
another seed on other pictures, and only judges. What one was trained against, the other measures.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unigame.synthetic.world import COLOURS, GRID, SHAPES, Scene

from .pictures import MIXED, PX, broad_scenes, pictures_8bit
from .progress import Log, chance, portion, warm_cosine

CELL, BATCH = PX // GRID, 64


class CellReader(nn.Module):
    """A small CNN on single 12 px cells (last class of each head: nothing there)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(64 * 9, 128),
            nn.GELU(),
        )
        self.colour = nn.Linear(128, len(COLOURS) + 1)
        self.shape = nn.Linear(128, len(SHAPES) + 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of colour (B, 9, 7) and shape (B, 9, 5) of pictures in [0, 1]."""
        cells = images.unfold(2, CELL, CELL).unfold(3, CELL, CELL)
        cells = cells.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, CELL, CELL)
        hidden = self.body(cells).view(len(images), GRID * GRID, -1)
        return self.colour(hidden), self.shape(hidden)


class Verifier(nn.Module):
    """A CNN on the whole picture, its mean and deviation taken out, with context between cells."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, 1, 1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(64, 96, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(96, 128, 3, 3),
            nn.GELU(),
        )
        self.context = nn.Conv2d(128, 128, 3, 1, 1)
        self.colour = nn.Conv2d(128, len(COLOURS) + 1, 1)
        self.shape = nn.Conv2d(128, len(SHAPES) + 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of colour (B, 9, 7) and shape (B, 9, 5) of pictures in [0, 1]."""
        mean = images.mean((2, 3), keepdim=True)
        spread = images.std((1, 2, 3), keepdim=True) + 0.02
        hidden = self.body((images - mean) / spread)
        hidden = hidden + F.gelu(self.context(hidden))
        heads = (self.colour(hidden), self.shape(hidden))
        return heads[0].flatten(2).transpose(1, 2), heads[1].flatten(2).transpose(1, 2)

    @torch.no_grad()
    def certainty(self, images: Tensor, colour: Tensor, shape: Tensor) -> Tensor:
        """Log-probability of the truth in the least certain cell, (B,): 0 is certain."""
        scores = [self(chunk) for chunk in images.split(128)]
        log_colour = torch.cat([c for c, _ in scores]).log_softmax(-1)
        log_shape = torch.cat([s for _, s in scores]).log_softmax(-1)
        truth = log_colour.gather(-1, colour[..., None]) + log_shape.gather(-1, shape[..., None])
        return truth[..., 0].min(1).values


def cell_targets(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Colour and shape class of each cell, (B, 9) each."""
    colour = torch.full((len(scenes), GRID * GRID), len(COLOURS))
    shape = torch.full((len(scenes), GRID * GRID), len(SHAPES))
    for row, scene in enumerate(scenes):
        for t in scene.things:
            colour[row, t.cell] = list(COLOURS).index(t.colour)
            shape[row, t.cell] = SHAPES.index(t.shape)
    return colour, shape


def cell_loss(scores: tuple[Tensor, Tensor], colour: Tensor, shape: Tensor) -> Tensor:
    """Mean cross-entropy over cells, both heads; targets (B, 9)."""
    return F.cross_entropy(scores[0].flatten(0, 1), colour.flatten()) + F.cross_entropy(
        scores[1].flatten(0, 1), shape.flatten()
    )


def fit(
    reader: CellReader | Verifier, count: int, steps: int, seed: int, log: Log
) -> CellReader | Verifier:
    """Train on broad pictures, half of them at a random brightness and contrast; then freeze."""
    scenes = broad_scenes(count, seed, clean=0.3, counts=MIXED)
    images, (colour, shape) = pictures_8bit(scenes), cell_targets(scenes)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3)
    for step in range(steps):
        _, generator = chance(seed + 1, step)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * warm_cosine(step, steps)
        rows = torch.randint(count, (BATCH,), generator=generator)
        grey = torch.rand(BATCH, 1, 1, 1, generator=generator) * 0.5 + 0.15
        left = torch.rand(BATCH, 1, 1, 1, generator=generator) * 1.7 + 0.15
        pixels = (grey + left.clamp(max=1) * (images[rows].float() / 255 - grey)).clamp(0, 1)
        loss = cell_loss(reader(pixels), colour[rows], shape[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    log(reader=type(reader).__name__, loss=loss.item())
    return reader.eval().requires_grad_(False)


def train_verifier(folder: Path, seed: int, scale: float = 1.0, steps: int = 600) -> None:
    """Train the judge and write ``verifier.safetensors`` to ``folder``."""
    torch.manual_seed(seed + 700)
    log = Log(folder, "verifier")
    verifier = fit(Verifier(), portion(7000, scale), portion(steps, scale), seed + 701, log)
    save_file(verifier.state_dict(), folder / "verifier.safetensors")


def load_verifier(folder: Path) -> Verifier:
    """The judge, frozen."""
    verifier = Verifier()
    verifier.load_state_dict(load_file(folder / "verifier.safetensors"))
    return verifier.eval().requires_grad_(False)
