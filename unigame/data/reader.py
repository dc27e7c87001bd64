"""The base of all readers: rows known at construction, pictures read on access."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import Dataset

from unigame.data.images import CORRUPT, MISSING, CorruptImage, decode_image, read_file
from unigame.data.records import Record, SkippedRow, load_rows, most_common_answer
from unigame.data.skips import SkipReport
from unigame.errors import UserError

VERIFY = ("none", "exists", "decode")
NO_TEXT = "no text"
SECOND_PICTURE = "second picture of one name"
TWO_CAPTIONS = "two captions of one name"


@dataclass(slots=True)
class Row:
    """What is kept of a row in memory: its text, and where its picture lies.

    Attributes:
        image: A path, or whatever the reader's own :meth:`Reader.read_image` understands.
        answers: The annotators' raw answers, empty where there are none.
    """

    id: str
    image: Any
    question: str | None = None
    answer: str | None = None
    caption: str | None = None
    answers: tuple[str, ...] = ()


class Reader(Dataset[Record]):
    """A map-style dataset of :class:`Record` that checks its rows at construction.

    Args:
        rows: Good rows, and :class:`SkippedRow` for those that the source itself cannot offer.
        where: The file or folder, for messages.
        verify: What is checked of every picture before training: ``"exists"`` (the file is there;
            cheap), ``"decode"`` (it decodes; reads everything once) or ``"none"``. Rows that fail
            are left out and counted in ``skips``.
        limit: Keep the first ``limit`` good rows only.

    Attributes:
        skips: The :class:`SkipReport` of the construction.

    Raises:
        UserError: Bad ``verify`` or ``limit``, or no row is left.
    """

    def __init__(
        self,
        rows: Iterable[Row | SkippedRow],
        *,
        where: str,
        verify: str = "exists",
        limit: int | None = None,
    ) -> None:
        check_options(verify=verify, limit=limit)
        self.where = where
        self.skips = SkipReport()
        self._rows: list[Row] = []
        check = _Checker(self, verify)
        ids: set[str] = set()
        for position, row in enumerate(rows):
            if row.id in ids:  # an image id, say, where several rows share the image
                row = replace(row, id=f"{row.id}#{position}")
            ids.add(row.id)
            failure = row if isinstance(row, SkippedRow) else check(row)
            if failure is None:
                self._rows.append(row)  # type: ignore[arg-type]
            else:
                self.skips.add(failure.id, failure.reason)
            if len(self._rows) == limit:
                break  # before the source is asked for a row that is not needed
        self.skips.kept = len(self._rows)
        if not self._rows:
            fix = "check the image folder" if self.skips.skipped else "the source is empty"
            raise UserError(f"{where} has no usable row ({self.skips.summary()}); {fix}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        """One record.

        Raises:
            CorruptImage: Its picture is gone or damaged.
            IndexError: ``index`` is out of range.
        """
        row = self._rows[index]
        try:
            image = decode_image(self.read_image(row))
        except CorruptImage as error:
            raise CorruptImage(row.id, error.reason, error.detail) from error
        record: Record = {"image": image, **_texts(row)}  # type: ignore[typeddict-item]
        if row.answers:
            record["answers"] = list(row.answers)
        return record

    def __getitems__(self, indices: Sequence[int]) -> list[Record | SkippedRow]:
        """The rows of a batch, a :class:`SkippedRow` for every damaged one; torch calls this."""
        return load_rows(self, indices)

    def iter_texts(self) -> Iterator[dict[str, str | None]]:
        """The texts and the id of every row, in order; no picture is read."""
        return (_texts(row) for row in self._rows)

    def check_image(self, row: Row) -> None:
        """The cheap check of ``verify="exists"``: raise :class:`CorruptImage` if it fails."""
        if not os.path.isfile(row.image):
            raise CorruptImage(row.id, MISSING, f"no file {row.image}")
        if not os.path.getsize(row.image):
            raise CorruptImage(row.id, CORRUPT, f"empty file {row.image}")

    def read_image(self, row: Row) -> bytes:
        """The encoded picture of a row.

        Raises:
            CorruptImage: There is none.
        """
        return read_file(row.image)


class _Checker:
    """Checks each picture once, though many questions may share it."""

    def __init__(self, reader: Reader, verify: str) -> None:
        self._reader, self._verify = reader, verify
        self._seen: dict[Any, tuple[str, str] | None] = {}

    def __call__(self, row: Row) -> SkippedRow | None:
        if self._verify == "none":
            return None
        if row.image not in self._seen:
            self._seen[row.image] = self._failure(row)
        failure = self._seen[row.image]
        return None if failure is None else SkippedRow(row.id, *failure)

    def _failure(self, row: Row) -> tuple[str, str] | None:
        """Reason and detail; not the exception, whose frames would keep the file's bytes."""
        try:
            if self._verify == "exists":
                self._reader.check_image(row)
            else:
                decode_image(self._reader.read_image(row))
        except CorruptImage as error:
            return error.reason, error.detail
        return None


def check_options(*, verify: str, limit: int | None) -> None:
    """Check the options that all readers share.

    Raises:
        UserError: One of them is impossible.
    """
    if verify not in VERIFY:
        raise UserError(f"verify is {verify!r}; choose from {', '.join(VERIFY)}")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise UserError(f"limit must be a whole number of rows above 0, got {limit!r}")


def text_cell(row: Mapping[str, Any], column: str | None, place: str) -> str | None:
    """The text of a cell, stripped; None where there is no such cell or it is empty.

    Raises:
        UserError: The cell holds something other than text.
    """
    value = row.get(column) if column is not None else None
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(f"{place}: {column} is {value!r:.60}, but must be text (put it in quotes)")
    return value.strip() or None


def answers_cell(row: Mapping[str, Any], column: str | None, place: str) -> tuple[str, ...]:
    """Raw answers: a list of texts or of ``{"answer": text}``, or ``{"answer": [texts]}``.

    Empty answers are left out.

    Raises:
        UserError: The cell holds something else.
    """
    if column is None or row.get(column) is None:
        return ()
    value = row[column]
    if isinstance(value, Mapping):  # older releases of `datasets` turn lists of dicts inside out
        value = value.get("answer")
    items = value if isinstance(value, list | tuple) else [None]
    texts = [item.get("answer") if isinstance(item, Mapping) else item for item in items]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"{place}: {column} is {row[column]!r:.80}, but must be a list of texts or of "
            '{"answer": text}'
        )
    # Few distinct answers, ten a row: interning saves most of their memory.
    return tuple(sys.intern(str(text).strip()) for text in texts if str(text).strip())


def texts_of(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> dict[str, Any]:
    """The text fields of :class:`Row`; of several answers the most common one is *the* answer.

    Raises:
        UserError: A cell has the wrong type.
    """
    answers = answers_cell(row, columns.get("answers"), place)
    answer = text_cell(row, columns.get("answer"), place)
    if answer is None and answers:
        answer = most_common_answer(answers)
    return {
        "question": text_cell(row, columns.get("question"), place),
        "answer": answer,
        "caption": text_cell(row, columns.get("caption"), place),
        "answers": answers,
    }


def _texts(row: Row) -> dict[str, str | None]:
    """A record without its picture."""
    texts = {"question": row.question, "answer": row.answer, "caption": row.caption}
    return {**texts, "id": row.id}
