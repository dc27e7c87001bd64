"""docs/tuning.md names every logged figure and every symptom."""

from __future__ import annotations

import re

from tests.imports import PACKAGE
from unigame.methods.registry import METHODS, kind_of
from unigame.training.metrics import names_of

PAGE = (PACKAGE.parent / "docs" / "tuning.md").read_text(encoding="utf-8")
TRAINERS_OWN = {"loss", "grad_norm", "learning_rate", "epoch", "eval_loss"}


def test_the_glossary_has_every_logged_figure_and_no_other():
    shipped = [kind_of(name) for name in METHODS.names()]
    shipped = [kind for kind in shipped if kind.__module__.startswith("unigame.")]
    table = PAGE.split("## Every logged figure")[1]
    rows = re.findall(r"^\| (`.*?) \|", table, flags=re.M)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(named) == len(set(named))
    assert set(named) == set(names_of(shipped)) | TRAINERS_OWN  # type: ignore[arg-type]


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
