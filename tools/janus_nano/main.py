"""The recipe as one command; every stage goes on where it was stopped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from tools.common import reader

from . import clip, gates, knowledge, language, tokenizer, vision

STAGES = {
    "vision": vision.train,
    "tokenizer": tokenizer.train,
    "verifier": reader.train_verifier,
    "clip": clip.train,
    "language": language.train,
    "knowledge": knowledge.train,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages in order; returns 1 if a gate fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.janus_nano",
        description="Train the bundled model from scratch: an hour to two of one core. The log is "
        "kept in OUTPUT/log.jsonl, the gates in OUTPUT/gates.json, the model in OUTPUT/janus_nano.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/janus_nano"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--stages", nargs="+", choices=(*STAGES, "gates"), default=[*STAGES, "gates"]
    )
    parser.add_argument(
        "--gates", nargs="+", choices=tuple(gates.MEASURES), default=list(gates.MEASURES)
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of steps and pictures")
    parser.add_argument(
        "--start", help="checkpoint whose language model is gone on with (such as janus-nano)"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for name, stage in STAGES.items():
        if name in args.stages:
            extra = {"start": args.start} if name == "language" else {}
            stage(args.output, args.seed, args.scale, **extra)
    if "gates" in args.stages:
        asked = {"seed": args.seed, "scale": args.scale, "names": args.gates}
        return 0 if gates.check(args.output, **asked) else 1
    return 0
