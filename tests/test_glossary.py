"""docs/tuning.md names every logged figure and every symptom."""

from __future__ import annotations

import re

from tests.imports import PACKAGE
from unigame.methods.registry import METHODS, kind_of
from unigame.methods.selfplay.heads import Heads
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.methods.selfplay.styles import Styles
from unigame.training.metrics import names_of

PAGE = (PACKAGE.parent / "docs" / "tuning.md").read_text(encoding="utf-8")
TRAINERS_OWN = {"loss", "grad_norm", "learning_rate", "epoch", "eval_loss"}
# Of perturber_scope and of styles alone.
OF_HEADS = {name.replace("_0_", "_M_") for name in Heads.figures(1)}
ONE_STYLE = SelfPlaySettings(styles=["{caption}"], similarity="none")
OF_STYLES = {name.replace("_0_", "_M_") for name in Styles.figures(ONE_STYLE)}


def named() -> list[str]:
    """Every figure in the glossary's first column."""
    rows = re.findall(r"^\| (`.*?) \|", PAGE.split("## Every logged figure")[1], flags=re.M)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def as_named(figure: str) -> str:
    """A logged name as the glossary has it: peaks of all phases are one entry, and so are heads."""
    figure = re.sub(r"^(head|style)_\d+_", r"\1_M_", figure)
    return re.sub(r"^memory_.*", "memory_PHASE", figure)


def test_the_glossary_has_every_logged_figure_and_no_other():
    shipped = [kind_of(name) for name in METHODS.names()]
    shipped = [kind for kind in shipped if kind.__module__.startswith("unigame.")]
    glossary, logged = named(), {as_named(name) for name in names_of(shipped)}  # type: ignore[arg-type]
    assert len(glossary) == len(set(glossary))
    assert set(glossary) == logged | TRAINERS_OWN | OF_HEADS | OF_STYLES


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
