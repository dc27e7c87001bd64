"""``unigame train``: a recipe and its overrides, and how to go on after a signal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from unigame.cli.app import argument, command
from unigame.cli.endings import kept, write_beside
from unigame.errors import UserError
from unigame.settings.command_words import masked


@command(
    "train from a recipe: unigame train janus_nano --learning_rate 1e-4",
    epilog="All settings, with the values of a recipe: unigame train RECIPE --help",
    # What follows the recipe is the recipe reader's, --help too.
    context_settings={"allow_interspersed_args": False},
)
@argument("recipe", "YAML file or the name of a shipped recipe")
@argument("overrides", "settings to change", nargs=-1, metavar="[--key value]...")
def train(recipe: str, overrides: tuple[str, ...]) -> None:
    """Train from a YAML recipe: a file, or the name of a shipped one.

    Any setting of the recipe can follow as --key value; a dotted path reaches inside: --lora.r 8.
    """
    words = list(overrides)
    if {"--help", "-h"} & set(words):
        from unigame.cli.settings_help import print_settings

        return print_settings(recipe, words)
    from unigame.training.run import main

    with kept(lambda: _kept(recipe, words)):
        result = main(recipe, words)
    if result is not None:
        write_beside(result.output_dir)


def _kept(recipe: str, overrides: Sequence[str]) -> str:
    """The newest checkpoint of the interrupted run and the command that resumes it."""
    from unigame.training.recipe import load_recipe
    from unigame.training.run_folder import checkpoints, is_finished, step_of

    try:
        training = load_recipe(recipe, overrides).training
        folder = Path(training.output_dir or "runs")
    except UserError:
        return "Stopped before training began; nothing was written."
    found = checkpoints(folder)
    if not found:
        return f"Stopped; no checkpoint was due yet in {folder}, so a new run starts over."
    if is_finished(folder, step_of(found[0])):
        return f"Stopped; the training was done and its result is in {folder}."
    if training.save_only_model:
        return (
            f"Stopped; kept {found[0]}, of the weights alone (save_only_model), so that no run can "
            "go on from it exactly; one can start from it with --adapter"
        )
    rest = _without(overrides, "--resume_from_checkpoint", "--overwrite_output_dir")
    words = ["unigame", "train", recipe, *rest, "--resume_from_checkpoint", str(found[0])]
    # A terminal's lines end in log files that others read.
    return f"Stopped; kept {found[0]}. Resume: {shlex.join(masked(words))}"


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
