"""DPG-Bench: one prompt with its graph of questions, and what was answered about its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unigame.evaluation.source import BadRow
from unigame.evaluation.tasks.dpg import rules as dpg
from unigame.evaluation.tasks.dpg.task import questions_of
from unigame.reports.metrics import value_of

COLUMNS = ("proposition_id", "dependency", "tuple", "question_natural_language")


def prompt(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """As ``official``: a reply that cannot be read is no yes."""
    try:
        questions = questions_of(dict(zip(COLUMNS, row, strict=True)) for row in inputs["rows"])
    except BadRow:
        return {"score": None}
    pictures = [
        dpg.Answered(
            f"p/{number}",
            "p",
            questions,
            {q.id: bool(dpg.read_answer(said)) for q, said in zip(questions, replies, strict=True)},
        )
        for number, replies in enumerate(inputs["answers"])
    ]
    found = {m.label: value_of(m) for m in dpg.metrics(pictures, last_only=True)}
    categories = dict.fromkeys(q.category for q in questions)
    broad = {name: dpg.broad_category(name) for name in categories}
    return {
        "pictures": [each.score for each in pictures],
        "score": found["DPG score"] / 100,
        "broad": {name: found[name] for name in broad.values()},
        # One that is all of its broad category has no metric of its own.
        "categories": {name: found.get(name, found[broad[name]]) for name in categories},
    }


CHECKS = {"DPG.prompt": prompt}
