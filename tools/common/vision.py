"""Stage 1: the eyes, trained broadly and then frozen, as a SigLIP is.

The eyes are the vision encoder and what joins it to the language model. Linear heads on what the
language model reads find colour and shape at every patch and rebuild its pixels.
Pictures of every style are rebuilt, but those that are not clean ask little for colour and shape,
each style of a head of its own, and only its mild strengths are shown. So what a question may need
is there in every style (the probes of ``readout`` say how much), but nothing makes a red disc under
noise lie exactly where a clean red disc lies. A language model that is trained on clean pictures
only then misreads each style in its own way, and training on that style can mend it: the room that
the method presupposes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unigame.synthetic.world import COLOURS, GRID, SHAPES, Scene, Severity

from .pictures import (
    CROWDED,
    FAR,
    PATCH_PX,
    STYLES,
    WIDTH,
    broad_scenes,
    patch_cells,
    pictures,
    pictures_8bit,
    style_of,
    styled,
)
from .progress import Log, Loop, chance, portion, warm_cosine
from .reader import cell_targets

RATE, STEPS, BATCH = 1.5e-3, 500, 64
STYLE_WEIGHT = 0.25
"""How much colour and shape of a degraded picture count, beside 1 for a clean one."""


class Heads(nn.Module):
    """Linear read-outs of the aligner's tokens; thrown away after this stage."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = {"colour": len(COLOURS) + 1, "shape": len(SHAPES) + 1}
        self.heads = nn.ModuleDict(
            {k: nn.Linear(WIDTH, n * len(STYLES)) for k, n in self.sizes.items()}
        )
        self.cell = nn.Linear(WIDTH, GRID * GRID)
        self.pixels = nn.Linear(WIDTH, 3 * PATCH_PX * PATCH_PX)

    def read(self, name: str, tokens: Tensor, style: Tensor) -> Tensor:
        """Class scores (B, 81, C) by the head of each picture's ``style`` (B,)."""
        scores = self.heads[name](tokens).unflatten(-1, (len(STYLES), self.sizes[name]))
        return scores[torch.arange(len(style)), :, style]

    def loss(self, tokens: Tensor, labels: dict[str, Tensor], images: Tensor) -> Tensor:
        """Weighted sum over heads; ``tokens`` (B, 81, W), labels (B, 81), style (B,)."""
        weight = torch.where(labels["style"] == 0, 1.0, STYLE_WEIGHT)[:, None]
        weight = weight * torch.where(labels["colour"] < len(COLOURS), 1.0, 0.3)
        loss = torch.zeros(())
        for name in ("colour", "shape"):
            scores = self.read(name, tokens, labels["style"])
            ce = F.cross_entropy(scores.flatten(0, 1), labels[name].flatten(), reduction="none")
            loss = loss + (ce * weight.flatten()).sum() / weight.sum()
        loss = loss + 0.2 * F.cross_entropy(
            self.cell(tokens).flatten(0, 1), labels["cell"].flatten()
        )
        patches = F.unfold(images * 2 - 1, PATCH_PX, stride=PATCH_PX).transpose(1, 2)
        return loss + 0.5 * F.l1_loss(self.pixels(tokens), patches)


def labels_of(scenes: list[Scene]) -> dict[str, Tensor]:
    """Targets of every head."""
    cells = patch_cells()
    colour, shape = cell_targets(scenes)
    return {
        "colour": colour[:, cells],
        "shape": shape[:, cells],
        "cell": cells.expand(len(scenes), -1),
        "style": torch.tensor([STYLES.index(style_of(s)) for s in scenes]),
    }


@torch.no_grad()
def readout(
    tower: nn.Module, seed: int, count: int, severity: Severity = FAR
) -> dict[str, dict[str, float]]:
    """Linear probes of colour and shape on patches of objects, per style.

    ``own`` was fitted on that style: what the features hold. ``clean`` was fitted on clean
    pictures: what a reader of clean pictures makes of them. The gap is the room.
    """
    probes: dict[str, Tensor] = {}
    figures: dict[str, dict[str, float]] = {}
    for style in STYLES:
        rng = np.random.default_rng([seed, 92])
        scenes = [styled(style, rng, severity, CROWDED) for _ in range(count)]
        labels, tokens = labels_of(scenes), tower(pictures(scenes))
        train, test = slice(0, count * 3 // 4), slice(count * 3 // 4, count)
        figures[style] = {}
        for name, classes in (("colour", len(COLOURS)), ("shape", len(SHAPES))):
            own = _ridge(*_busy(tokens[train], labels, name, train), classes)
            probes.setdefault(name, own)
            inputs, wanted = _busy(tokens[test], labels, name, test)
            for which, probe in (("own", own), ("clean", probes[name])):
                right = (inputs @ probe).argmax(-1) == wanted
                figures[style][f"{name}_{which}"] = right.float().mean().item()
    return figures


def _busy(
    tokens: Tensor, labels: dict[str, Tensor], name: str, rows: slice
) -> tuple[Tensor, Tensor]:
    """Tokens (with a constant) and classes of the patches that show an object."""
    busy = labels["colour"][rows] < len(COLOURS)
    inputs = tokens[busy]
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1), labels[name][rows][busy]


def _ridge(inputs: Tensor, classes: Tensor, count: int) -> Tensor:
    """Least-squares classifier (W + 1, C)."""
    wanted = F.one_hot(classes, count).float()
    square = inputs.T @ inputs + 0.1 * len(inputs) / 100 * torch.eye(inputs.shape[1])
    return torch.linalg.solve(square, inputs.T @ wanted)


def train(
    folder: Path,
    seed: int,
    new_tower: Callable[[], nn.Module],
    scale: float = 1.0,
    steps: int = STEPS,
) -> None:
    """Train tower and heads; write ``vision.safetensors`` to ``folder``.

    ``new_tower`` makes a module that turns pictures (B, 3, 36, 36) in [0, 1] into what the language
    model reads, (B, 81, W).
    """
    torch.manual_seed(seed)
    steps, size = portion(steps, scale), portion(14_000, scale)
    log = Log(folder, "vision")
    scenes = broad_scenes(size, seed + 11, clean=0.4, severity="mild", counts=CROWDED)
    images, labels = pictures_8bit(scenes), labels_of(scenes)
    tower, heads = new_tower(), Heads()
    log(parameters=sum(p.numel() for p in tower.parameters()), images=size)
    weights = [p for part in (tower, heads) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    both = nn.ModuleList([tower, heads])
    loop = Loop(folder, "vision", both, optimizer, lambda s: RATE * warm_cosine(s, steps, 50), log)
    for step in loop.steps(steps):
        _, generator = chance(seed, step)
        rows = torch.randint(size, (BATCH,), generator=generator)
        pixels = images[rows].float() / 255
        loop.descend(heads.loss(tower(pixels), {k: v[rows] for k, v in labels.items()}, pixels))
        if step % 50 == 49:
            log(step=step + 1, loss=loop.loss)
        if step % 200 == 199 or step == steps - 1:
            for style, figures in readout(tower, seed + 12, portion(160, scale)).items():
                log(style=style, **figures)
            save(tower, folder)


def save(tower: nn.Module, folder: Path) -> None:
    """Write the tower's weights."""
    state = {k: v.detach().contiguous().clone() for k, v in tower.state_dict().items()}
    save_file(state, folder / "vision.safetensors")


def load(tower: nn.Module, folder: Path) -> None:
    """Read the tower's weights."""
    tower.load_state_dict(load_file(folder / "vision.safetensors"))
