"""Free drawings in the styles of a recipe: what they show, what is kept of them, what U misreads.

    python benchmarks/free_drawings.py --temperatures 0.7 0.4 0.2 --floors 0.28 0.3 --json FILE

For settings of C in the space of prompts (docs/method.md): a temperature at which the drawing shows
its caption, and a floor at which the verifier keeps those that do. Captions are of the training
split of the synthetic world, by a seed that no preset of evidence.py takes. Shares, of all drawings
and of each style:

right       shows exactly the objects of its caption, by the reader of the world, faint ones too
kept        its similarity to the caption is at the floor or above
precision   of those kept, right
misread     of those kept, the base model answers their question otherwise than the caption does
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import record
import torch
from torch import Tensor

from unigame.backbones import load_backbone
from unigame.evaluation.world import replies
from unigame.methods.drawings.verifying import draw, rendered
from unigame.methods.selfplay.settings import CAPTION, SelfPlaySettings
from unigame.methods.semantics import build_scorer
from unigame.seeds import derive_seed
from unigame.synthetic import SyntheticDataset
from unigame.synthetic.reader import shows
from unigame.system.at_once import AtOnce
from unigame.training.recipe import load_recipe


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="janus_nano")
    parser.add_argument("--drawings", type=int, default=280, help="of each temperature")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.7, 0.4, 0.2])
    parser.add_argument("--floors", type=float, nargs="+", default=[0.28, 0.30])
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(argv)
    recipe = load_recipe(options.recipe, [])
    settings = recipe.settings_of("selfplay")
    if not settings.styles:
        sys.exit(f"free_drawings.py: recipe {options.recipe} has no styles")
    backbone = load_backbone(recipe.model, dtype="float32").eval()
    figures = {
        str(temperature): measure(backbone, settings, temperature, options)
        for temperature in options.temperatures
    }
    return record.write({"temperatures": figures}, _settings(options), options.json)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "json"}


@torch.no_grad()
def measure(
    backbone: Any, settings: SelfPlaySettings, temperature: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Drawings at one temperature, the styles in turn: the shares of each floor, and of styles."""
    data = SyntheticDataset(
        "train", options.drawings, derive_seed(options.seed, "data"), questions_per_scene=1
    )
    rows = [data[index] for index in range(len(data))]
    captions = [row["caption"] for row in rows]
    style_D = torch.arange(len(rows)) % len(settings.styles)
    codes = draw(
        backbone,
        [
            settings.styles[style].replace(CAPTION, caption)
            for style, caption in zip(style_D.tolist(), captions, strict=True)
        ],
        [derive_seed(options.seed, "drawing", index) for index in range(len(rows))],
        temperature=temperature,
        guidance_scale=options.guidance_scale,
        batch=AtOnce(140),
    )
    images = rendered(backbone, codes)
    scorer = build_scorer(
        settings.similarity,
        backbone,
        clip_model=settings.similarity_model,
        clip_mode=settings.similarity_mode,  # type: ignore[arg-type]
    )
    similarity_D = scorer(images, images, captions).cpu()
    right_D = torch.tensor(
        [
            shows(image.permute(1, 2, 0).numpy(), data.scenes[row["scene"]])
            for image, row in zip(images, rows, strict=True)
        ]
    )
    said = replies(backbone, images, [row["question"] for row in rows])
    misread_D = torch.tensor([a != row["answer"] for a, row in zip(said, rows, strict=True)])
    found: dict[str, Any] = {"right": share(right_D), "floors": {}}
    for floor in options.floors:
        kept_D = similarity_D >= floor
        shares = shares_of(kept_D, right_D, misread_D)
        shares["styles"] = {
            style: shares_of(*(of[style_D == number] for of in (kept_D, right_D, misread_D)))
            for number, style in enumerate(settings.styles)
        }
        found["floors"][str(floor)] = shares
    return found


def shares_of(kept_D: Tensor, right_D: Tensor, misread_D: Tensor) -> dict[str, Any]:
    """See the module docstring."""
    return {
        "right": share(right_D),
        "kept": share(kept_D),
        "precision": share(right_D[kept_D]),
        "misread": share(misread_D[kept_D]),
        "misread_of_right": share(misread_D[kept_D & right_D]),
    }


def share(values: Tensor) -> float | None:
    """Of a mask; None of none."""
    return round(values.double().mean().item(), 4) if len(values) else None


if __name__ == "__main__":
    main()
