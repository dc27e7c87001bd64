"""Which recipe a demo of a checkpoint plays, by its family."""

from __future__ import annotations

from typing import NamedTuple

from unigame.backbones.folder import find_checkpoint, find_family
from unigame.backbones.registry import available_backbones, find_info
from unigame.evaluation.ask import Drawing
from unigame.evaluation.miniature import usual_drawing

RECIPE, RECIPES = "janus_nano", {"bagel": "bagel_nano"}  # of families that have their own


class Kind(NamedTuple):
    """What a demo must know of a checkpoint.

    Attributes:
        recipe: what is played.
        drawing: how it draws.
        latents: whether it draws in latents.
    """

    recipe: str
    drawing: Drawing
    latents: bool


def kind_of(model: str) -> Kind:
    """Of a checkpoint.

    Raises:
        UserError: no checkpoint of a known family.
    """
    family, _ = find_family(find_checkpoint(model), available_backbones())
    info = find_info(family)
    latents = info is not None and info.drawing == "latents"
    return Kind(RECIPES.get(family, RECIPE), usual_drawing(latents), latents)
