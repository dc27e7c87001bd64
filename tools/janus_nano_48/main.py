"""``python -m tools.janus_nano_48``: the recipe of ``janus-nano`` as one command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import gates, knowledge, language, tokenizer, vision

STAGES = (
    *("tokenizer", "decoder", "vision", "warm-up", "language", "drawing", "knowledge"),
    "gates",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages in order; returns 1 if a gate fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.janus_nano_48",
        description="Train the bundled model from scratch: an hour to two of one core. The log "
        "is kept in OUTPUT/log.jsonl and the model in OUTPUT/janus_nano.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--scale", type=float, default=1.0, help="share of steps and pictures")
    args = parser.parse_args(argv)
    if "tokenizer" in args.stages:
        tokenizer.train(args.output, args.seed, args.scale)
    if "decoder" in args.stages:
        tokenizer.refine(args.output, args.seed, args.scale)
    if "vision" in args.stages:
        vision.train(args.output, args.seed, args.scale)
    if "warm-up" in args.stages:
        language.warm_up(args.output, args.seed, args.scale)
    if "language" in args.stages:
        language.train(args.output, args.seed, args.scale)
    if "drawing" in args.stages:
        language.finish(args.output, args.seed, args.scale)
    if "knowledge" in args.stages:
        knowledge.train(args.output, args.seed, args.scale)
    passed = True
    if "gates" in args.stages:
        passed = gates.check(args.output / "janus_nano", args.output, args.seed, args.scale)
    print(f"Next: unigame demo --model {args.output}/janus_nano")  # noqa: T201
    return 0 if passed else 1
