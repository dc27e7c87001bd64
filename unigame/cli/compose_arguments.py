"""Arguments of ``unigame compose``. Nothing heavy is imported here: every command reads it."""

from __future__ import annotations

import argparse
from pathlib import Path

from unigame.cli import values


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The parts, sizes, and how the game redraws."""
    command.add_argument("folder", type=Path, help="to write")
    command.add_argument("--language", required=True, help="VLM or LLM (folder or Hub id)")
    command.add_argument("--denoiser", required=True, help="diffusers pipeline (folder or Hub id)")
    command.add_argument("--vision-encoder", help="SigLIP or CLIP, for a text-only LLM")
    command.add_argument("--vae", help="another VAE than the pipeline's")
    command.add_argument("--image-size", type=values.positive_int, default=512, help="px, drawn")
    command.add_argument("--vision-size", type=values.positive_int, help="px, read (Qwen only)")
    command.add_argument("--num-queries", type=values.positive_int, default=64, help="drawn from")
    command.add_argument("--strength", type=float, default=0.5, help="noise of a redrawing, (0, 1]")
    command.add_argument("--draw-steps", type=values.positive_int, default=1, help="of a redrawing")
    command.add_argument("--seed", type=values.seed, default=0, help="of the connector's weights")
