"""Who should confirm drawings? U's answers and an image-text model, on the same drawings.

    python benchmarks/verifiers.py --json FILE

For `verifier` and `clip_floor` of the methods `verify` and `imagine` (docs/methods.md): G draws
captions of the training split of the synthetic world, by a seed that no preset of evidence.py
takes. Each verifier judges the same drawings, the exact reader of the world judges them all:

confirmed   share of all drawings
precision   of those confirmed, right
recall      of those right, confirmed
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import record
import torch

from unigame.backbones import load_backbone
from unigame.methods.drawings.readers import Judged, build_reader
from unigame.methods.drawings.settings import BY_SIMILARITY
from unigame.methods.drawings.verifying import Verdicts, Verifier, draw
from unigame.methods.semantics import build_scorer
from unigame.seeds import derive_seed
from unigame.synthetic import SyntheticDataset
from unigame.synthetic.from_captions import WorldQuestions
from unigame.system.at_once import AtOnce

BATCH = 100  # drawings, and questions, at a time


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="janus-nano")
    parser.add_argument("--similarity-model", default="janus-nano-clip")
    parser.add_argument("--drawings", type=int, default=400)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--floors", type=float, nargs="+", default=[0.25, 0.30, 0.35, 0.40])
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(argv)
    figures = measure(options)
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    return record.write(figures, settings, options.json)


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of each verifier; see the module docstring."""
    backbone = load_backbone(options.model, dtype="float32").eval()
    data = SyntheticDataset(
        "train", options.drawings, derive_seed(options.seed, "data"), questions_per_scene=1
    )
    captions = [data[index]["caption"] for index in range(len(data))]
    codes = draw(
        backbone,
        captions,
        [derive_seed(options.seed, "drawing", index) for index in range(len(captions))],
        temperature=options.temperature,
        guidance_scale=1.0,
        batch=AtOnce(BATCH),
    )
    asked = WorldQuestions()(captions)
    scorer = build_scorer(
        "clip", backbone, clip_model=options.similarity_model, clip_mode="image-text"
    )
    verdicts = {
        who: Verifier(backbone, who, 1.0, build_reader("world"), 8, AtOnce(BATCH), scorer)(
            codes, captions, asked
        )
        for who in ("base", BY_SIMILARITY)
    }
    right = verdicts["base"].right
    cosines = verdicts[BY_SIMILARITY].similarity
    confirmed = {"base": verdicts["base"].confirmed}
    for floor in options.floors:
        confirmed[f"{BY_SIMILARITY}, {floor:g}"] = [cosine >= floor for cosine in cosines]
    return {
        "right": round(sum(one is True for one in right) / len(right), 4),
        "verifiers": {who: figures_of(right, by) for who, by in confirmed.items()},
    }


def figures_of(right: Sequence[bool | None], confirmed: Sequence[bool]) -> dict[str, float | None]:
    """Shares of one verifier."""
    verdicts = Verdicts(confirmed=list(confirmed), right=list(right))
    shares = Judged.of(verdicts).figures()
    shares["confirmed"] = (sum(confirmed), len(confirmed))
    return {
        name: round(shares[name][0] / shares[name][1], 4) if shares[name][1] else None
        for name in ("confirmed", "precision", "recall")
    }


if __name__ == "__main__":
    main()
