"""docs/tuning.md names every logged figure and every symptom."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.imports import PACKAGE
from unigame.methods.registry import METHODS, kind_of
from unigame.methods.selfplay import SelfPlay
from unigame.training.metrics import names_of
from unigame.training.recipe import load_recipe

PAGE = (PACKAGE.parent / "docs" / "tuning.md").read_text(encoding="utf-8")
RECIPES = sorted(file.stem for file in (PACKAGE / "recipes").glob("*.yaml"))
TRAINERS_OWN = {"loss", "grad_norm", "learning_rate", "epoch", "eval_loss"}


def named() -> list[str]:
    """Every figure in the glossary's first column."""
    rows = re.findall(r"^\| (`.*?) \|", PAGE.split("## Every logged figure")[1], flags=re.M)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def as_named(figure: str) -> str:
    """A logged name as the glossary has it: peaks of all phases are one entry, and so are heads."""
    figure = re.sub(r"^(head|style)_\d+_", r"\1_M_", figure)
    return re.sub(r"^memory_.*", "memory_PHASE", figure)


def logged_by(*methods: Any) -> set[str]:
    """Glossary names of what a run of these methods logs."""
    return {as_named(name) for name in names_of(methods)}


def test_the_glossary_has_every_logged_figure_and_no_other():
    shipped = [kind_of(name) for name in METHODS.names()]
    shipped = [kind for kind in shipped if kind.__module__.startswith("unigame.")]
    # Optional parts log figures of their own: an instance has them, and not its class.
    every_part = SelfPlay(
        perturber_scope="heads",
        content_weight=1.0,
        verified_target=0.5,
        styles=["{caption}"],
        similarity="clip",
        similarity_model="janus-nano-clip",
    )
    glossary = named()
    assert len(glossary) == len(set(glossary))
    assert set(glossary) == logged_by(*shipped) | logged_by(every_part) | TRAINERS_OWN


@pytest.mark.parametrize("name", RECIPES)
def test_the_glossary_has_what_shipped_recipes_log(name: str):
    assert logged_by(*load_recipe(name, here=False).build_methods()) <= set(named())


def test_every_symptom_has_a_section_that_names_its_figures():
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S))
    found: dict[str, set[str]] = {}
    for file in PACKAGE.glob("methods/**/*.py"):
        for symptom in re.findall(r'Finding\(\s*"([^"]+)"', file.read_text(encoding="utf-8")):
            found.setdefault(symptom, set())
    assert {"off", "C dead", "C too strong", "buffer frozen"} <= found.keys()
    for symptom in [*found, "U does not learn"]:
        assert symptom in sections, symptom
        assert len(re.findall(r"`\w+`", sections[symptom])) >= 2
