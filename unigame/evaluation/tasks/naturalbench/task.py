"""NaturalBench: groups of two questions on two pictures with opposite answers (arXiv 2410.14669).

A model that ignores the picture answers both pictures alike and gets no group right. Two layouts
are read: ``BaiqiL/NaturalBench`` (one row a group) and ``BaiqiL/NaturalBench-lmms-eval`` (four).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unigame.data import SkipReport
from unigame.errors import UserError
from unigame.evaluation.base import Benchmark, DataSource, Item, Loaded, Picture, Prediction, Scored
from unigame.evaluation.items import Row, loaded, replies, require, shares, shown
from unigame.evaluation.source import BadRow, Rows, field, read_rows
from unigame.evaluation.tasks.naturalbench.rules import (
    CELLS,
    GOLD,
    INSTRUCTIONS,
    MULTIPLE_CHOICE,
    YES_NO,
    build_prompt,
    extract,
    group_metrics,
)
from unigame.reports.metrics import Metric


class NaturalBench(Benchmark):
    """Headline: G-Acc, a group counts when all four of its answers are right."""

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
        require(items, rows.info.id, skips, "group")
        return loaded(items, rows.info, skips)

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
        kinds = {item.cluster: item.reference["question_type"] for item in items}
        labels: dict[str, dict[str, int]] = {group: {} for group in kinds}
        for item, reply in replies(items, predictions):
            labels[item.cluster][item.reference["cell"]] = extract(reply, kinds[item.cluster])
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
            details={"question_types": _by_type(metrics[0], kinds)},
        )


def _by_type(g_acc: Metric, kinds: Mapping[str, str]) -> dict[str, dict[str, float | int]]:
    """G-Acc, 0 to 1, of the yes/no groups and of the A/B groups."""
    rates = shares((kinds[unit.id], unit.counts[0]) for unit in g_acc.units)
    counts = Counter(kinds[unit.id] for unit in g_acc.units)
    return {kind: {"g_acc": rate, "groups": counts[kind]} for kind, rate in rates.items()}


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
    if kind not in INSTRUCTIONS:
        raise BadRow(f"{name} is neither {YES_NO} nor {MULTIPLE_CHOICE}")
    return kind


def _check_pattern(answers: Sequence[str], kind: str) -> None:
    if tuple(extract(answer, kind) for answer in answers) != GOLD:
        raise BadRow("answers do not follow the pattern yes, no, no, yes")
