"""The recipe as one command; every stage goes on where it was stopped."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tools.common import reader
from tools.common.vision import STEPS as VISION

from . import gates, language, sheet, vae, vision


@dataclass(frozen=True)
class Stage:
    """A part of the recipe.

    Attributes:
        run: of folder, seed, scale and steps.
        steps: where nothing else is asked for.
        minutes: that these take, of one free core; pictures are made on top.
    """

    run: Callable[[Path, int, float, int], None]
    steps: int
    minutes: float


STAGES = {
    "vision": Stage(vision.train, VISION, 3.5),
    "vae": Stage(vae.train, vae.STEPS, 12),
    "verifier": Stage(reader.train_verifier, 600, 1.2),
    "together": Stage(language.together, language.TOGETHER, 58),
    "drawing": Stage(language.draws, language.DRAWING, 12),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages in order; returns 1 if a gate fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bagel_nano",
        description="Train the bundled BAGEL from scratch: about an hour of one core. The log is "
        "kept in OUTPUT/log.jsonl, the gates in OUTPUT/gates.json, the model in OUTPUT/bagel_nano, "
        "drawings of it in OUTPUT/sheet.png.",
    )
    names = (*STAGES, "sheet", "gates")
    parser.add_argument("--output", type=Path, default=Path("runs/bagel_nano"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=names, default=list(names))
    parser.add_argument(
        "--minutes",
        nargs="+",
        type=_minutes,
        default=[],
        metavar="STAGE=MINUTES",
        help="of a free core, in the place of "
        + " ".join(f"{name}={stage.minutes:g}" for name, stage in STAGES.items()),
    )
    parser.add_argument(
        "--gates", nargs="+", choices=tuple(gates.MEASURES), default=list(gates.MEASURES)
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of steps and pictures")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    minutes = dict(args.minutes)
    for name, stage in STAGES.items():
        if name in args.stages:
            steps = max(2, round(stage.steps * minutes.get(name, stage.minutes) / stage.minutes))
            stage.run(args.output, args.seed, args.scale, steps)
    if "sheet" in args.stages:
        sheet.write(args.output, args.seed)
    if "gates" in args.stages:
        asked = {"seed": args.seed, "scale": args.scale, "names": args.gates}
        return 0 if gates.check(args.output, **asked) else 1
    return 0


def _minutes(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if name not in STAGES or value <= 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not STAGE=MINUTES, as in vae=20; stages are {', '.join(STAGES)}"
        )
    return name, value
