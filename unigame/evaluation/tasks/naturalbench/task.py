"""NaturalBench: groups of two questions on two pictures with opposite answers (arXiv 2410.14669).

A model that ignores the picture answers both pictures alike and gets no group right. Prompts,
parser and metrics are those of Baiqi-Li/NaturalBench 9967605 and lmms-eval 0.7.3, which agree but
for one blank in the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unigame.data import SkipReport
from unigame.errors import UserError
from unigame.evaluation.base import Benchmark, DataSource, Item, Loaded, Picture, Prediction, Scored
from unigame.evaluation.items import Row, shown
from unigame.evaluation.source import BadRow, Rows, field, fingerprint, read_rows
from unigame.reports.metrics import Metric, Unit

YES_NO, MULTIPLE_CHOICE = "yes_no", "multiple_choice"
CELLS = ("q0i0", "q0i1", "q1i0", "q1i1")
"""Question and picture of a group's four items, in the reference's order."""

GOLD = (1, 0, 0, 1)
"""Right answers of the four cells, 1 = yes or A. The references assume this pattern for all groups
and never read the answers; here a group whose answers differ is left out and counted."""

# The cells that must all be right for one unit of a metric.
_QUESTIONS = {"q0": (0, 1), "q1": (2, 3)}
_PICTURES = {"i0": (0, 2), "i1": (1, 3)}

_INSTRUCTIONS = {
    YES_NO: "Please answer Yes or No.",
    MULTIPLE_CHOICE: "Please output the letter corresponding to the correct option.",
}
_WORDS = {
    YES_NO: re.compile(r"\b(?:(yes)|(no))\b", re.IGNORECASE),
    MULTIPLE_CHOICE: re.compile(r"\b(?:(a)|(b))\b", re.IGNORECASE),
}


def build_prompt(question: str, question_type: str, variant: str) -> str:
    """What the model is asked: ``official`` joins question and instruction without a blank."""
    if variant == "bare":
        return question
    blank = " " if variant == "lmms_eval" else ""
    return f"{question}{blank}{_INSTRUCTIONS[question_type]}"


def extract(reply: str, question_type: str) -> int:
    """1 for yes or A, 0 for no or B, -1 for neither; the earlier whole word wins, in any case.

    The article counts as A: "This is a B" is 1.
    """
    found = _WORDS[question_type].search(reply)
    return -1 if found is None else 2 - (found.lastindex or 0)


@dataclass(frozen=True)
class GroupOutcome:
    """Which parts of one group are right; from its four labels, in the order of ``CELLS``."""

    cells: tuple[bool, ...]

    @classmethod
    def of(cls, labels: Sequence[int]) -> GroupOutcome:
        """From what :func:`extract` gave for the four replies; -1 is always wrong."""
        return cls(tuple(label == gold for label, gold in zip(labels, GOLD, strict=True)))

    def units(self, group: str) -> dict[str, list[Unit]]:
        """Units by metric; ``group`` is the id of the group, and their cluster."""

        def unit(part: str, right: bool) -> Unit:
            return Unit(f"{group}/{part}" if part else group, (float(right),), cluster=group)

        def all_of(parts: Mapping[str, tuple[int, ...]]) -> list[Unit]:
            return [unit(part, all(self.cells[i] for i in on)) for part, on in parts.items()]

        return {
            "g_acc": [unit("", all(self.cells))],
            "q_acc": all_of(_QUESTIONS),
            "i_acc": all_of(_PICTURES),
            "acc": [unit(cell, right) for cell, right in zip(CELLS, self.cells, strict=True)],
        }


_LABELS = {"g_acc": "G-Acc", "q_acc": "Q-Acc", "i_acc": "I-Acc", "acc": "Acc"}


def group_metrics(labels: Mapping[str, Sequence[int]]) -> list[Metric]:
    """G-Acc, Q-Acc, I-Acc and Acc, in percent, from the four labels of each group.

    G-Acc comes first: the UniGame paper reports NaturalBench by it.
    """
    units: dict[str, list[Unit]] = {name: [] for name in _LABELS}
    for group, four in labels.items():
        for name, found in GroupOutcome.of(four).units(group).items():
            units[name] += found
    return [Metric(name, label, tuple(units[name])) for name, label in _LABELS.items()]


class NaturalBench(Benchmark):
    """NaturalBench. Headline: G-Acc, a group counts when all four of its answers are right.

    Two layouts are read: ``BaiqiL/NaturalBench`` (one row a group) and
    ``BaiqiL/NaturalBench-lmms-eval`` (four rows a group).
    """

    name = "naturalbench"
    title = "NaturalBench"
    group = "ood"
    task = "answer"
    prompt_variants = ("lmms_eval", "official", "bare")
    parser_variants = ("lmms_eval",)
    max_new_tokens = 16
    stop = ("\n\n",)

    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Read the groups; ``limit`` counts items and is rounded up to whole groups."""
        flat_hub = (source.hub_id or "").endswith("-lmms-eval")
        rows = read_rows(
            source,
            hub_id="BaiqiL/NaturalBench",
            config=None,
            split="test" if flat_hub else "train",
            required=("Index",),
        )
        skips = SkipReport()
        groups = _flat_groups(rows, skips) if _is_flat(rows) else _wide_groups(rows, skips)
        items: list[Item] = []
        for group in groups:
            if limit is not None and len(items) >= limit:
                break
            items += self._items(group)
        if not items:
            raise UserError(
                f"{rows.info.id} has no usable group ({skips.summary()}); is it the right data "
                "set, and its download complete?"
            )
        skips.kept = len(items)
        return Loaded(items, replace(rows.info, fingerprint=fingerprint(items)), skips)

    def _items(self, group: _Group) -> list[Item]:
        return [
            Item(
                id=f"{group.id}/{cell}",
                prompt=build_prompt(group.questions[i // 2], group.type, self.prompt),
                pictures=(group.pictures[i],),
                reference={"group": group.id, "cell": cell, "question_type": group.type},
                cluster=group.id,
            )
            for i, cell in enumerate(CELLS)
        ]

    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """The four accuracies. A group of which an item has no reply is left out of all of them."""
        labels: dict[str, dict[str, int]] = {}
        types: dict[str, str] = {}
        for item in items:
            prediction = predictions.get(item.id)
            types[item.cluster] = kind = item.reference["question_type"]
            four = labels.setdefault(item.cluster, {})
            if prediction is not None and not prediction.error:
                four[item.reference["cell"]] = extract(prediction.text, kind)
        whole = {
            group: [four[cell] for cell in CELLS]
            for group, four in labels.items()
            if len(four) == len(CELLS)
        }
        metrics = group_metrics(whole)
        return Scored(
            metrics=metrics,
            unparsed=[
                f"{group}/{cell}"
                for group, four in whole.items()
                for cell, label in zip(CELLS, four, strict=True)
                if label == -1
            ],
            unscored={
                f"{group}/{cell}": "another item of its group has no reply"
                for group, four in labels.items()
                if group not in whole
                for cell in four
            },
            details={"question_types": _by_type(metrics[0].units, types)},
        )


def _by_type(units: Sequence[Unit], types: Mapping[str, str]) -> dict[str, dict[str, float | int]]:
    """G-Acc, 0 to 1, of the yes/no groups and of the A/B groups."""
    found: dict[str, list[float]] = {}
    for unit in units:
        found.setdefault(types[unit.id], []).append(unit.counts[0])
    return {
        kind: {"g_acc": sum(rights) / len(rights), "groups": len(rights)}
        for kind, rights in found.items()
    }


# ---- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """Two questions, and the pictures of the four items in the order of ``CELLS``."""

    id: str
    type: str
    questions: tuple[str, str]
    pictures: tuple[Picture, ...]


def _is_flat(rows: Rows) -> bool:
    for row in rows.rows:
        if "Question_0" in row and "Image_0" in row:
            return False
        if "Question" in row and "Image" in row:
            return True
    names = dict.fromkeys(name for row in rows.rows for name in row)
    raise UserError(
        f"{rows.info.id} is in neither layout of NaturalBench: its columns are {', '.join(names)}; "
        "BaiqiL/NaturalBench has Image_0, Question_0, Image_0_Question_0, ..., "
        "BaiqiL/NaturalBench-lmms-eval has Image and Question"
    )


def _wide_groups(rows: Rows, skips: SkipReport) -> list[_Group]:
    """One row a group, as in ``BaiqiL/NaturalBench``."""
    groups: dict[str, _Group] = {}
    for number, row in enumerate(rows.rows):
        try:
            group = _wide_group(row, rows.root)
        except BadRow as bad:
            skips.add(str(row.get("Index", f"row {number}")), bad.reason)
            continue
        if group.id in groups:
            skips.add(f"{group.id} (row {number})", "duplicate Index")
        groups.setdefault(group.id, group)
    return list(groups.values())


def _wide_group(row: Row, root: Path | None) -> _Group:
    index, kind = field(row, "Index", int), _type(row)
    questions = field(row, "Question_0", str), field(row, "Question_1", str)
    answers = [
        field(row, f"Image_{image}_Question_{question}", str)
        for question in (0, 1)
        for image in (0, 1)
    ]
    _check_pattern(answers, kind)
    images = shown(row, root, "Image_0"), shown(row, root, "Image_1")
    return _Group(str(index), kind, questions, images + images)


def _flat_groups(rows: Rows, skips: SkipReport) -> list[_Group]:
    """Four rows a group, in the order of ``CELLS``: rows 4 g to 4 g + 3 by their Index."""
    groups: dict[int, dict[int, Row]] = {}
    for number, row in enumerate(rows.rows):
        try:
            index = field(row, "Index", int)
        except BadRow as bad:
            skips.add(f"row {number}", bad.reason)
            continue
        if index % 4 in groups.setdefault(index // 4, {}):
            skips.add(f"{index} (row {number})", "duplicate Index")
        groups[index // 4].setdefault(index % 4, row)
    whole = []
    for group, four in groups.items():
        try:
            whole.append(_flat_group(str(group), four, rows.root))
        except BadRow as bad:
            for cell in four:
                skips.add(f"{group}/{CELLS[cell]}", bad.reason)
    return whole


def _flat_group(id: str, four: Mapping[int, Row], root: Path | None) -> _Group:
    if len(four) != len(CELLS):
        raise BadRow("group of fewer than four rows")
    rows = [four[cell] for cell in range(len(CELLS))]
    questions, kinds = [field(row, "Question", str) for row in rows], [_type(row) for row in rows]
    if questions[0] != questions[1] or questions[2] != questions[3] or len(set(kinds)) != 1:
        raise BadRow("group is not two questions on two pictures")
    if any(row.get("Answer") is not None for row in rows):
        _check_pattern([field(row, "Answer", str) for row in rows], kinds[0])
    images = tuple(shown(row, root, "Image") for row in rows)
    return _Group(id, kinds[0], (questions[0], questions[2]), images)


def _type(row: Row) -> str:
    """Kind of question; an old revision spelled the column with a blank."""
    name = "Question Type" if row.get("Question_Type") is None else "Question_Type"
    if row.get(name) is None:
        raise BadRow("missing column Question_Type")
    kind = field(row, name, str)
    if kind not in _INSTRUCTIONS:
        raise BadRow(f"{name} is neither {YES_NO} nor {MULTIPLE_CHOICE}")
    return kind


def _check_pattern(answers: Sequence[str], kind: str) -> None:
    if tuple(extract(answer, kind) for answer in answers) != GOLD:
        raise BadRow("answers do not follow the pattern yes, no, no, yes")
