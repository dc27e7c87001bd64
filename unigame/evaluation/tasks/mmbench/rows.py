"""MMBench's rows, from parquet or tsv, as questions that are whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigame.data import SkipReport
from unigame.errors import UserError
from unigame.evaluation.base import Picture
from unigame.evaluation.items import Row, shown
from unigame.evaluation.source import BadRow, Rows, field

CONFIGS = ("en", "cn", "cc")

ROTATION = 1_000_000
"""Rotation ``k`` of the question with index ``i`` has the index ``i + k * ROTATION``."""

_LONGEST_POINTER = 64
"""A picture cell of at most this many characters is the index of the row that has the picture."""


@dataclass(frozen=True)
class MMBenchRow:
    """One rotation of one question.

    Attributes:
        index: of the row.
        question: text.
        hint: text to go before it, or empty.
        options: texts by letter; absent ones left out.
        answer: letter.
        category: such as ``object_localization``; ``"uncategorized"`` where there is none.
        l2_category: the category's category.
        picture: decodes the picture.
    """

    index: int
    question: str
    hint: str
    options: Mapping[str, str]
    answer: str
    category: str
    l2_category: str
    picture: Picture

    @property
    def base(self) -> int:
        """Index of the question's first row."""
        return self.index % ROTATION


def read_questions(rows: Rows, limit: int | None) -> tuple[list[MMBenchRow], SkipReport]:
    """The rows of all questions whose every rotation is usable, in the data's order.

    Args:
        rows: as read.
        limit: number of rows after which no further question is taken; None: all.

    Raises:
        UserError: no row has an answer, or no question is whole.
    """
    skips, table = SkipReport(), list(rows.rows)
    if all(row.get("answer") in (None, "", "nan") for row in table):
        raise UserError(
            f"{rows.info.id}, split {rows.info.split!r}, has no answers to compare with (MMBench's "
            "test answers are not in it); use --split dev, or MMBench_TEST_EN_V11.tsv, whose "
            "answers were released"
        )
    pictures, found, broken = _pictures(table), dict[int, MMBenchRow](), set[int]()
    for number, row in enumerate(table):
        try:
            index = field(row, "index", int)
        except BadRow as bad:
            skips.add(f"row {number}", bad.reason)
            continue
        if index in found:
            skips.add(f"{index} (row {number})", "duplicate index")
            continue
        try:
            found[index] = _read(row, index, pictures, rows.root)
        except BadRow as bad:
            skips.add(str(index), bad.reason)
            broken.add(index % ROTATION)
    chosen = _whole_questions(found, broken, skips, limit)
    if not chosen:
        raise UserError(
            f"{rows.info.id} has no usable question ({skips.summary()}); is it the right data set, "
            "and its download complete?"
        )
    kept = [row for row in found.values() if row.base in chosen]
    skips.kept = len(kept)
    return kept, skips


def _whole_questions(
    found: Mapping[int, MMBenchRow], broken: set[int], skips: SkipReport, limit: int | None
) -> set[int]:
    """Base indices to keep: no broken rotation, the unrotated row present, within the limit."""
    rotations: dict[int, list[int]] = {}
    for index, row in found.items():
        rotations.setdefault(row.base, []).append(index)
    chosen, taken = set[int](), 0
    for base, indices in rotations.items():
        if base in broken or base not in found:
            reason = "another rotation of its question is unusable"
            if base not in broken:
                reason = "its question's first rotation is missing"
            for index in indices:
                skips.add(str(index), reason)
        elif limit is None or taken < limit:
            chosen.add(base)
            taken += len(indices)
    return chosen


def _read(row: Row, index: int, pictures: Mapping[int, Any], root: Path | None) -> MMBenchRow:
    question = field(row, "question", str)
    options = {letter: text for letter in "ABCDE" if (text := _text(row, letter))}
    if len(options) < 2:
        raise BadRow("fewer than two options")
    answer = _text(row, "answer")
    if not answer:
        raise BadRow("no answer")
    if answer not in options:
        raise BadRow("answer is not the letter of an option")
    return MMBenchRow(
        index=index,
        question=question,
        hint=_text(row, "hint"),
        options=options,
        answer=answer,
        category=_text(row, "category") or "uncategorized",
        l2_category=_text(row, "l2-category") or _text(row, "L2-category") or "uncategorized",
        picture=shown({"image": pictures.get(index)}, root),
    )


def _text(row: Row, name: str) -> str:
    """A text cell; empty where it is missing, which may be written ``nan``.

    Raises:
        BadRow: a value that is no text.
    """
    value = row.get(name)
    if value is None or value == "nan" or (isinstance(value, float) and math.isnan(value)):
        return ""
    return field(row, name, str)


def _pictures(rows: Sequence[Row]) -> dict[int, Any]:
    """Image cells by index, with those that point to another row replaced by that row's.

    Rows without a picture are left out, and rows that point to such rows.
    """
    cells: dict[int, Any] = {}
    for row in rows:
        if (cell := row.get("image")) is not None and cell != "":
            try:
                cells.setdefault(field(row, "index", int), cell)
            except BadRow:
                continue  # counted where the row itself is read
    pointers = {index: int(cell) for index, cell in cells.items() if _is_pointer(cell)}
    pictures = {index: cell for index, cell in cells.items() if index not in pointers}
    return pictures | {
        index: pictures[target] for index, target in pointers.items() if target in pictures
    }


def _is_pointer(cell: Any) -> bool:
    """A short string of digits; other short strings are names of files."""
    return isinstance(cell, str) and len(cell) <= _LONGEST_POINTER and cell.strip().isdecimal()
