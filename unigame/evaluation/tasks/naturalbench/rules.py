"""NaturalBench's prompts, the reading of a reply, and the accuracies of a group of four.

Those of Baiqi-Li/NaturalBench 9967605 and lmms-eval 0.7.3, which agree but for one blank in the
prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from unigame.reports.metrics import Metric, Unit

YES_NO, MULTIPLE_CHOICE = "yes_no", "multiple_choice"
CELLS = ("q0i0", "q0i1", "q1i0", "q1i1")
"""Question and picture of a group's four items, in the reference's order."""

GOLD = (1, 0, 0, 1)
"""Right answers of the four cells, 1 = yes or A. The references assume this pattern for all groups
and never read the answers; here a group whose answers differ is left out and counted."""

INSTRUCTIONS = {
    YES_NO: "Please answer Yes or No.",
    MULTIPLE_CHOICE: "Please output the letter corresponding to the correct option.",
}
_WORDS = {
    YES_NO: re.compile(r"\b(?:(yes)|(no))\b", re.IGNORECASE),
    MULTIPLE_CHOICE: re.compile(r"\b(?:(a)|(b))\b", re.IGNORECASE),
}
_METRICS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "g_acc": ("G-Acc", {"": (0, 1, 2, 3)}),
    "q_acc": ("Q-Acc", {"q0": (0, 1), "q1": (2, 3)}),
    "i_acc": ("I-Acc", {"i0": (0, 2), "i1": (1, 3)}),
    "acc": ("Acc", {cell: (number,) for number, cell in enumerate(CELLS)}),
}
"""Name -> label, and the cells that must all be right for one unit. The paper reports G-Acc."""


def build_prompt(question: str, question_type: str, variant: str) -> str:
    """What the model is asked: ``official`` joins question and instruction without a blank."""
    if variant == "bare":
        return question
    blank = " " if variant == "lmms_eval" else ""
    return f"{question}{blank}{INSTRUCTIONS[question_type]}"


def extract(reply: str, question_type: str) -> int:
    """1 for yes or A, 0 for no or B, -1 for neither; the earlier whole word wins, in any case.

    The article counts as A: "This is a B" is 1.
    """
    found = _WORDS[question_type].search(reply)
    return -1 if found is None else 2 - (found.lastindex or 0)


def group_metrics(labels: Mapping[str, Sequence[int]]) -> list[Metric]:
    """The accuracies, in percent, from what ``extract`` gave for the four cells of each group.

    A group is the cluster of its units; -1 is always wrong.
    """
    right = {
        group: [label == gold for label, gold in zip(four, GOLD, strict=True)]
        for group, four in labels.items()
    }
    return [
        Metric(
            name,
            label,
            tuple(
                Unit(
                    f"{group}/{part}" if part else group,
                    (float(all(cells[i] for i in needed)),),
                    cluster=group,
                )
                for group, cells in right.items()
                for part, needed in parts.items()
            ),
        )
        for name, (label, parts) in _METRICS.items()
    ]
