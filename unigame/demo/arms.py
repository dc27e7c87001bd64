"""The arms of a demo: what each of them trains with, and how much of it is measured.

    base               the bundled model, untouched
    sft                fine-tuning on the training questions
    sft_equal_samples  the same number of steps, as many samples a step as the game has
    round_trip         the game at eps = 0: pictures redrawn and mined, but not attacked
    unigame            the game
    verify             fine-tuning, and U teaches G: confirmed drawings train caption -> image
    imagine            fine-tuning, and G teaches U: a task without pictures, from captions
    reca               fine-tuning, and the eyes teach the hand: reconstruction alignment

The three methods take their own settings from the recipes that ship for them, with rounds and rows
for the length of a demo; steps, batch and learning rate are those of all arms. ``verify`` and
``imagine`` draw by the same captions of new scenes. ``imagine`` reads the same training rows in
batches of half the size, so in twice the steps: a new task needs steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigame.seeds import derive_seed
from unigame.synthetic.from_captions import new_scenes, write_captions
from unigame.training.recipe import Recipe, load_recipe

QUICK_SHARE = 3  # a quick demo takes a third of the steps
CONTROLS: dict[str, dict[str, Any]] = {
    "sft": {"methods": "sft"},
    "sft_equal_samples": {"methods": "sft"},  # and a larger batch, see changes
    "round_trip": {"perturbation": "none"},
    "unigame": {},
}
TEXTS = "captions.jsonl"
"""Among the data of a demo: captions of new scenes, each with questions of the new task."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "verify": (
        "janus_nano_verify",
        {
            **{"texts": TEXTS, "first_captions": 120, "captions": 60, "drawings": 2},
            **{"every": 20, "rows": 16},
        },
    ),
    # All captions before the first step: no second round.
    "imagine": ("janus_nano_imagine", {"texts": TEXTS, "first_captions": 180, "every": 1000}),
    "reca": ("janus_nano_reca", {}),
}
"""The recipe that a method's settings are from, and what a demo changes of them."""
SMALL_BATCHES = {"imagine": 2}
"""So many times the steps, of batches so many times smaller."""
ARMS = ("base", *CONTROLS, *METHODS)


@dataclass(frozen=True)
class Sizes:
    """How much is measured, in replies or questions; and how many captions methods draw by."""

    answers: int = 240
    drawings: int = 144
    ood: int = 720
    attack: int = 60
    attack_steps: int = 8
    captions: int = 180


QUICK = Sizes(answers=96, drawings=48, ood=240, attack=60, attack_steps=8, captions=120)


def changes(recipe: Recipe, arm: str, quick: bool, latents: bool) -> dict[str, Any]:
    """What an arm changes of the recipe, by name.

    Args:
        recipe: of the demo.
        arm: any but the base.
        quick: whether the demo is.
        latents: whether the model draws in latents: it knows no noise but the whole.
    """
    training = recipe.training
    if arm in METHODS:
        name, own = METHODS[arm]
        settings = {**load_recipe(name, here=False).methods[arm], **own}
        if latents and "temperature" in settings:
            settings["temperature"] = 1.0
        found: dict[str, Any] = {"methods": {arm: settings}}
    else:
        found = dict(CONTROLS[arm])
    if arm == "sft_equal_samples":
        batch = training.per_device_train_batch_size
        hard = recipe.settings_of("selfplay").hard_rows(batch)
        found["per_device_train_batch_size"] = batch + hard
    steps, warm_up = training.max_steps, int(training.warmup_steps)
    if quick:
        steps, warm_up = max(1, steps // QUICK_SHARE), warm_up // QUICK_SHARE
    if arm in SMALL_BATCHES:
        steps, warm_up = SMALL_BATCHES[arm] * steps, SMALL_BATCHES[arm] * warm_up
        found["per_device_train_batch_size"] = max(
            1, training.per_device_train_batch_size // SMALL_BATCHES[arm]
        )
    return {**found, "max_steps": steps, "warmup_steps": warm_up}


def write_texts(folder: Path, captions: int, seed: int) -> None:
    """The captions that ``verify`` and ``imagine`` draw by."""
    scenes = new_scenes(captions, derive_seed(seed, "demo", "captions"))
    write_captions(folder / TEXTS, scenes, new_task=True)


def placed(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Changes of an arm with the file of captions where it lies."""
    if not isinstance(found.get("methods"), dict):
        return found
    methods = {
        name: {**own, **({"texts": str(folder / TEXTS)} if own.get("texts") == TEXTS else {})}
        for name, own in found["methods"].items()
    }
    return {**found, "methods": methods}
