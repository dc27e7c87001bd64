"""Stage 2: the vision encoder and its aligner, trained broadly and then frozen, as a SigLIP is.

Linear heads on the aligner's output read colour, shape and cell at every patch, rebuild the patch's
pixels and name the degradation, so everything a question may need is linearly there. The weakness
that training can mend is thereby left where the method looks for it: in the language model.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVisionAlignerMLP, JanusVisionModel

from unigame.synthetic.world import COLOURS, GRID, SHAPES, Corruption, Scene

from .common import (
    PATCH_PX,
    TOKENS,
    WIDTH,
    Log,
    broad_scenes,
    nano_config,
    pictures,
    portion,
    warm_cosine,
)
from .tokenizer import cell_targets

CORRUPTIONS = get_args(Corruption)


def patch_cells() -> Tensor:
    """Which cell each of the 36 patches lies in."""
    side, per_cell = int(TOKENS**0.5), int(TOKENS**0.5) // GRID
    index = torch.arange(side) // per_cell
    return (index[:, None] * GRID + index[None]).reshape(-1)


class Heads(nn.Module):
    """Linear read-outs of the aligner's tokens; thrown away after this stage."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"colour": len(COLOURS) + 1, "shape": len(SHAPES) + 1, "cell": GRID * GRID}
        self.heads = nn.ModuleDict({k: nn.Linear(WIDTH, n) for k, n in sizes.items()})
        self.pixels = nn.Linear(WIDTH, 3 * PATCH_PX * PATCH_PX)
        self.corruption = nn.Linear(WIDTH, len(CORRUPTIONS))

    def loss(self, tokens: Tensor, labels: dict[str, Tensor], images: Tensor) -> Tensor:
        """Weighted sum over heads; ``tokens`` (B, 36, W), labels (B, 36) or (B,)."""
        loss = torch.zeros(())
        for name, weight in (("colour", 1.0), ("shape", 1.0), ("cell", 0.3)):
            loss = loss + weight * F.cross_entropy(
                self.heads[name](tokens).flatten(0, 1), labels[name].flatten()
            )
        patches = F.unfold(images * 2 - 1, PATCH_PX, stride=PATCH_PX).transpose(1, 2)
        loss = loss + 0.5 * F.l1_loss(self.pixels(tokens), patches)
        return loss + 0.2 * F.cross_entropy(self.corruption(tokens.mean(1)), labels["corruption"])


def labels_of(scenes: list[Scene]) -> dict[str, Tensor]:
    """Targets of every head."""
    cells = patch_cells()
    colour, shape = cell_targets(scenes)
    return {
        "colour": colour[:, cells],
        "shape": shape[:, cells],
        "cell": cells.expand(len(scenes), -1),
        "corruption": torch.tensor([CORRUPTIONS.index(s.corruption) for s in scenes]),
    }


class Tower(nn.Module):
    """The two real modules in the order in which Janus applies them."""

    def __init__(self) -> None:
        super().__init__()
        config = nano_config(64, 3, 0).vision_config
        config._attn_implementation = "eager"  # faster than SDPA at 36 tokens
        self.vision_model = JanusVisionModel(config)
        self.aligner = JanusVisionAlignerMLP(config)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 48, 48) in [0, 1] -> (B, 36, W)."""
        return self.aligner(self.vision_model(images * 2 - 1).last_hidden_state)


@torch.no_grad()
def readout(tower: Tower, heads: Heads, scenes: list[Scene]) -> dict[str, float]:
    """Per-patch accuracy of colour and shape on patches that hold an object."""
    labels, tokens = labels_of(scenes), tower(pictures(scenes))
    busy = labels["colour"] < len(COLOURS)
    return {
        name: (heads.heads[name](tokens).argmax(-1) == labels[name])[busy].float().mean().item()
        for name in ("colour", "shape")
    }


def train(folder: Path, seed: int, scale: float = 1.0, batch: int = 64) -> None:
    """Train tower and heads; write ``vision.safetensors`` to ``folder``."""
    torch.manual_seed(seed)
    steps, size = portion(1300, scale), portion(24_000, scale)
    log = Log(folder, "vision")
    scenes = broad_scenes(size, seed + 11, plain=0.35, noise=True)
    images, labels = (pictures(scenes) * 255).to(torch.uint8), labels_of(scenes)
    tower, heads = Tower(), Heads()
    log(parameters=sum(p.numel() for p in tower.parameters()), images=size)
    weights = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.05)
    check = broad_scenes(portion(400, scale), seed + 12, plain=0.35, noise=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * warm_cosine(step, steps, warmup=100)
        rows = torch.randint(size, (batch,))
        pixels = images[rows].float() / 255
        loss = heads.loss(tower(pixels), {k: v[rows] for k, v in labels.items()}, pixels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 100 == 99:
            log(step=step + 1, loss=loss.item(), **readout(tower, heads, check))
    for name in CORRUPTIONS:
        subset = [
            s
            for s in broad_scenes(max(100, portion(4000, scale)), seed + 13, plain=0.2, noise=True)
            if s.corruption == name
        ]
        log(condition=name, **readout(tower, heads, subset))
    state = {k: v.detach().contiguous().clone() for k, v in tower.state_dict().items()}
    save_file(state, folder / "vision.safetensors")


def load(tower: Tower, folder: Path) -> None:
    """Read the tower's weights."""
    tower.load_state_dict(load_file(folder / "vision.safetensors"))
