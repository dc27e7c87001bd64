"""``unigame train``: hand the recipe to the training code, and say how to go on after a signal."""

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
    from unigame.training.run_folder import checkpoints, is_finished, step_of

    try:
        folder = Path(load_recipe(recipe, overrides).training.output_dir or "runs")
    except UserError:
        return "Stopped before training began; nothing was written."
    found = checkpoints(folder)
    if not found:
        return f"Stopped; no checkpoint was due yet in {folder}, so a new run starts over."
    if is_finished(folder, step_of(found[0])):
        return f"Stopped; the training was done and its result is in {folder}."
    kept = _without(overrides, "--resume_from_checkpoint", "--overwrite_output_dir")
    words = ["unigame", "train", recipe, *kept, "--resume_from_checkpoint", str(found[0])]
    return f"Stopped; kept {found[0]}. Resume: {shlex.join(words)}"


def _without(words: Sequence[str], *names: str) -> list[str]:
    """``--name value``, ``--name=value`` and ``--name`` alone, left out."""
    kept: list[str] = []
    dropping = False
    for word in words:
        if word.startswith("--"):
            dropping = word.partition("=")[0].replace("-", "_").replace("__", "--", 1) in names
        if not dropping:
            kept.append(word)
    return kept
