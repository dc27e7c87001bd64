"""``unigame train``: hand the recipe to the training code, and say how to go on after Ctrl-C."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from unigame.errors import UserError


def train(recipe: str, overrides: Sequence[str]) -> None:
    """Train from a recipe with ``--key value`` overrides."""
    from unigame.training.run import main

    main(recipe, list(overrides))


def interrupted_note(recipe: str, overrides: Sequence[str]) -> str:
    """One line: the newest checkpoint of the interrupted run and the command that resumes it."""
    from unigame.training.recipe import load_recipe

    try:
        folder = Path(load_recipe(recipe, overrides).training.output_dir or "runs")
    except UserError:
        return "Stopped before training began; nothing was written."
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_step)
    if not checkpoints:
        return f"Stopped; no checkpoint was due yet in {folder}, so a new run starts over."
    newest = checkpoints[-1]
    kept = [word for word in overrides if not word.startswith("--resume_from_checkpoint=")]
    while "--resume_from_checkpoint" in kept:
        at = kept.index("--resume_from_checkpoint")
        del kept[at : at + 2]
    words = ["unigame", "train", recipe, *kept, "--resume_from_checkpoint", str(newest)]
    return f"Stopped; kept {newest}. Resume: {shlex.join(words)}"


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
