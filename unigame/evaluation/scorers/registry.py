"""Scorers by name: judges, detectors, colour classifiers, encoders and matchers.

On the command line a scorer is ``NAME`` or ``NAME:ARGUMENT``; in Python it may also be given as an
object. One of your own is a class in your package, and a line in its ``pyproject.toml``::

    [project.entry-points."unigame.scorers"]
    sharpness = "my_package:Sharpness"

Its methods say what it is good for: ``reply`` (judge), ``detect`` (detector), ``classify`` (colour
classifier), ``encode`` (encoder), ``__call__`` (matcher). See the protocols in this folder.
"""

from __future__ import annotations

from typing import Any

from unigame.errors import UserError
from unigame.registry import Registry

SCORERS = Registry(
    "unigame.scorers",
    {
        "hf": "unigame.evaluation.scorers.judge_hf:HFJudge",
        "openai": "unigame.evaluation.scorers.judge_openai:OpenAIJudge",
        "unigame": "unigame.evaluation.scorers.judge_backbone:BackboneJudge",
    },
)


def is_scorer(text: object) -> bool:
    """Whether a text names a registered scorer, and not a Hub id or a folder."""
    return isinstance(text, str) and text.partition(":")[0] in SCORERS.references()


def open_scorer(text: str, method: str) -> Any:
    """The scorer of ``NAME`` or ``NAME:ARGUMENT``; a class is called, all else is taken as it is.

    Raises:
        UserError: an unknown name, or a scorer that lacks the method that is needed here.
    """
    name, colon, argument = text.strip().partition(":")
    found = SCORERS.get(name)
    if method not in dir(found):  # of a class its own: every class can itself be called
        raise UserError(
            f"scorer {name!r} ({SCORERS.references()[name]}) has no method {method}, which is "
            "needed here; choose another"
        )
    return found(*[argument] * bool(colon)) if isinstance(found, type) else found
