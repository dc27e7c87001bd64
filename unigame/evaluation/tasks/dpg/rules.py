"""DPG-Bench's rules without its data: the question graph, replies, and the score of a picture.

Source: ``dpg_bench/compute_dpg_bench.py`` of TencentQQGYLab/ELLA, commit 3c228f1 (Hu et al., arXiv
2403.05135). The questions were made as in DSG (Cho et al., arXiv 2310.18235).

A prompt has yes/no questions, and a question may depend on others: whether the cat is black depends
on whether there is a cat. For one picture:

1. every question is asked on its own; ``yes`` is worth 1, all else 0;
2. in the order of the list, a question with a parent that is worth 0 becomes worth 0 itself, so
   that a missing object costs all that was said of it;
3. the picture's score is the mean over its questions.

The score of a prompt is the mean over its pictures, the DPG score that over the prompts, times 100.
Category scores are means of the answers *before* step 2. A category is what stands before the
bracket in the question's tuple (``attribute - color (cat, black)``), a broad one what stands before
the dash.

| variant | rows | a reply that is neither yes nor no | category scores are over |
|---|---|---|---|
| ``repaired`` | all | unknown: no score for the picture, but for step 2 | all pictures |
| ``official`` | not the first one | 0 | the last picture of each prompt |

``official`` follows the reference in what its own users report as bugs (issues 60 and 61 of that
repository). Its first row is the first question of a prompt whose other questions depend on it, so
that prompt is lost. Both variants give the same DPG score but for that prompt, and for replies that
cannot be read, which the reference's own model does not give.

Deviation in both: the reference compares the reply with ``yes`` letter by letter, as its VQA model
says it. Other judges say ``Yes.``, so case, marks and further words are allowed (``read_answer``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from unigame.evaluation.items import by_group
from unigame.reports.metrics import Metric, Unit

REPAIRED: Final = "repaired"
OFFICIAL: Final = "official"
BROAD_CATEGORIES: Final = ("global", "entity", "attribute", "relation", "other")
NO_PARENT: Final = 0

_LETTERS = re.compile(r"[^\W\d_]+")


class Question(NamedTuple):
    """One question of a prompt's graph.

    Attributes:
        id: its ``proposition_id``, unique within the prompt.
        text: what the judge is asked.
        parents: ids of the questions that it depends on.
        category: such as ``"attribute - color"``.
    """

    id: int
    text: str
    parents: tuple[int, ...]
    category: str


def parents_of(dependency: str) -> tuple[int, ...]:
    """``"1, 3"`` -> (1, 3); ``"0"``, which means none, -> ().

    Raises:
        ValueError: not whole numbers with commas between.
    """
    numbers = [int(part) for part in dependency.split(",")]
    return tuple(dict.fromkeys(number for number in numbers if number != NO_PARENT))


def category_of(proposition: str) -> str:
    """``"attribute - color (cat, black)"`` -> ``"attribute - color"``."""
    return proposition.split("(")[0].strip()


def broad_category(category: str) -> str:
    """``"attribute - color"`` -> ``"attribute"``."""
    return category.split("-")[0].strip()


# ---- reading a reply -----------------------------------------------------------------------------


def read_answer(reply: str) -> bool | None:
    """Whether a reply says yes; None: it says neither yes nor no, or both.

    The first word counts, or the last one: ``Yes, a black cat.`` and ``The answer is: **no**``.
    """
    words = _LETTERS.findall(reply.lower())
    said = {word == "yes" for word in (words[:1] + words[-1:]) if word in ("yes", "no")}
    return said.pop() if len(said) == 1 else None


# ---- the score of a picture ----------------------------------------------------------------------

Answers = Mapping[int, bool | None]
"""What was answered about one picture, by question; None or absent: it is not known."""


def with_parents(questions: Sequence[Question], answers: Answers) -> dict[int, bool | None]:
    """What each question is worth once its parents are looked at; None: that cannot be said.

    A question is worth 0 where its own answer or a parent is 0, whatever the rest may be. As in the
    reference, the list is gone through once, in its order: of a parent that stands *behind* its
    child, the child sees the plain answer.
    """
    worth: dict[int, bool | None] = {each.id: answers.get(each.id) for each in questions}
    for each in questions:
        known = [worth[each.id], *(worth[parent] for parent in each.parents)]
        worth[each.id] = False if False in known else None if None in known else True
    return worth


def picture_score(questions: Sequence[Question], answers: Answers) -> float | None:
    """Share of the questions that are worth 1, in [0, 1]; None where one is not known."""
    worth = with_parents(questions, answers).values()
    known = [each for each in worth if each is not None]
    return sum(known) / len(known) if len(known) == len(worth) else None


# ---- figures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """One picture, and what the judge said of it.

    Attributes:
        id: of the picture.
        item: id of its prompt.
        questions: of the prompt.
        answers: by question.
    """

    id: str
    item: str
    questions: Sequence[Question]
    answers: Answers

    @property
    def score(self) -> float | None:
        """See ``picture_score``."""
        return picture_score(self.questions, self.answers)


def metrics(pictures: Iterable[Answered], *, last_only: bool = False) -> list[Metric]:
    """The DPG score, then broad categories, then categories, all times 100; none of no picture.

    A unit of the DPG score is a prompt; one of a category is a question about a picture, and its
    cluster the prompt. So all intervals are over prompts.

    Args:
        pictures: those that have a score, in order.
        last_only: categories take the answers about the last picture of each prompt only.
    """
    of_item: dict[str, list[Answered]] = {}
    for each in pictures:
        of_item.setdefault(each.item, []).append(each)
    if not of_item:
        return []
    prompts = tuple(
        Unit(id, (sum(each.score or 0.0 for each in group) / len(group),))
        for id, group in of_item.items()
    )
    counted = [group[-1:] if last_only else group for group in of_item.values()]
    answers = [unit for group in counted for each in group for unit in _units(each)]
    categories = by_group(answers)
    broad = by_group(replace(unit, group=broad_category(unit.group)) for unit in answers)
    found = [Metric("dpg", "DPG score", prompts)]
    for name in sorted(broad, key=_broad_order):
        found.append(Metric(_key(name), name, _ungrouped(broad[name])))
    for name in sorted(categories):
        # "global -" may be all that there is of "global", and would be the same figure twice.
        if len(categories[name]) < len(broad[broad_category(name)]):
            found.append(Metric(_detailed_key(name), name, _ungrouped(categories[name])))
    return found


def _units(each: Answered) -> list[Unit]:
    """One unit a question whose own answer is known; its group is the category."""
    return [
        Unit(f"{each.id}/{question.id}", (float(answer),), each.item, question.category)
        for question in each.questions
        if (answer := each.answers.get(question.id)) is not None
    ]


def _ungrouped(units: Iterable[Unit]) -> tuple[Unit, ...]:
    return tuple(replace(unit, group="") for unit in units)


def _broad_order(name: str) -> tuple[int, str]:
    known = name in BROAD_CATEGORIES
    return (BROAD_CATEGORIES.index(name) if known else len(BROAD_CATEGORIES), name)


def _key(name: str) -> str:
    return "_".join(name.split()) or "none"


def _detailed_key(name: str) -> str:
    """``"attribute - color"`` -> ``"attribute_color"``; never the name of a broad category."""
    broad, _, detail = name.partition("-")
    return f"{_key(broad)}_{_key(detail)}"
