"""A data set whose rows are checked when it is opened, and whose pictures are read on access."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unigame.data.images import CORRUPT, MISSING, CorruptImage
from unigame.data.pictures import StoredPicture, TableCell, closed_file
from unigame.data.records import Record, SkippedRow, load_rows
from unigame.data.shards import Source, numbered
from unigame.data.skips import SkipReport
from unigame.errors import UserError

VERIFY = ("none", "exists", "decode")
NO_TEXT = "no text"
SEVERAL = "several pictures"
SECOND_PICTURE = "second picture of one name"
_ADVICE = {
    MISSING: "check the image folder",
    CORRUPT: "these are no whole pictures: download them again",
    NO_TEXT: "each needs a question with its answer, or a caption: are the columns the right ones?",
}


class PicturesNotFound(UserError):
    """No row of a source is left, because its pictures are elsewhere; ``images:`` says where."""


@dataclass(slots=True)
class Row:
    """What is kept of a row in memory: its text, and where its picture lies.

    Attributes:
        image: The cell of a :class:`StoredPicture`.
        images: All cells, where they are not one: none, or several in order.
        answers: The annotators' raw answers, empty where there are none.
    """

    id: str
    image: Any
    question: str | None = None
    answer: str | None = None
    caption: str | None = None
    answers: tuple[str, ...] = ()
    images: tuple[Any, ...] | None = None

    @property
    def cells(self) -> tuple[Any, ...]:
        """The cells of all its pictures."""
        return (self.image,) if self.images is None else self.images

    def texts(self) -> dict[str, Any]:
        """The record without its picture."""
        return {
            "question": self.question,
            "answer": self.answer,
            "caption": self.caption,
            "id": self.id,
        }


class RecordDataset(Dataset[Record]):
    """A map-style data set of :class:`Record`; the readers are its subclasses.

    Args:
        rows: Good rows, and :class:`SkippedRow` for those that the source itself cannot offer.
        where: The file or folder, for messages.
        root: Where relative paths of pictures start; None: there are no pictures by path.
        verify: What is checked of every picture before training: ``"exists"`` (the file is there
            and may be read; cheap), ``"decode"`` (it decodes; reads everything once) or ``"none"``.
            Rows that fail are left out and counted in ``skips``.
        limit: Keep the first ``limit`` good rows only; no row after them is asked for.
        images_option: Whether the source's option ``images`` says where paths start, for messages.

    Attributes:
        skips: The :class:`SkipReport` of the construction.

    Raises:
        UserError: Bad ``verify`` or ``limit``, a picture's file that may not be read, or no row is
            left (:class:`PicturesNotFound` where another folder would mend it).
    """

    picture_only: bool = False
    """Whether rows that hold nothing but a picture were asked for."""

    def __init__(
        self,
        rows: Iterable[Row | SkippedRow],
        *,
        where: str,
        root: Path | None,
        verify: str = "exists",
        limit: int | None = None,
        images_option: bool = False,
    ) -> None:
        if verify not in VERIFY:
            raise UserError(f"verify is {verify!r}; choose from {', '.join(VERIFY)}")
        whole = isinstance(limit, int) and not isinstance(limit, bool)
        if limit is not None and not (whole and limit > 0):
            raise UserError(f"limit must be a whole number of rows above 0, got {limit!r}")
        self.where, self.root, self.images_option = where, root, images_option
        self.skips = SkipReport()
        self._rows: Sequence[Row] = []
        self._shards: Tensor | None = None
        failures: dict[Any, tuple[str, str] | None] = {}  # many questions may share a picture
        ids: set[str] = set()
        for position, row in enumerate(rows):
            if row.id in ids:  # an image id, say, where several rows share the image
                row = replace(row, id=f"{row.id}#{position}")
            ids.add(row.id)
            if isinstance(row, SkippedRow):
                self.skips.add(row.id, row.reason, row.detail)
                continue
            if failure := self._failure_of(row, verify, failures):
                self.skips.add(row.id, *failure)
                continue
            self._keep(row)
            self.skips.keep(len(row.cells))
            if self.skips.kept == limit:
                break
        if not self.skips.kept:
            elsewhere = images_option and next(iter(self.skips.counts()), "") == MISSING
            kind = PicturesNotFound if elsewhere else UserError
            raise kind(f"{where} has no usable row ({self.skips.summary()}); {advice(self.skips)}")

    def _keep(self, row: Row) -> None:
        """One more good row; a reader may keep less of it."""
        self._rows.append(row)  # type: ignore[attr-defined]

    def _failure_of(
        self, row: Row, verify: str, known: dict[Any, tuple[str, str] | None]
    ) -> tuple[str, str] | None:
        """Why one of a row's pictures cannot be used: reason and detail; None where all can."""
        for image in row.cells:
            if isinstance(image, TableCell) and verify != "decode":
                continue  # it is there
            if image not in known:
                known[image] = self._failure(image, verify)
        return next((known[image] for image in row.cells if known.get(image)), None)

    def _failure(self, image: Any, verify: str) -> tuple[str, str] | None:
        """Why a picture cannot be used; None where it can.

        Raises:
            UserError: Its file is there and may not be read, which is no fault of the picture.
        """
        try:
            if verify == "exists":
                StoredPicture(image, self.root).check()
            elif verify == "decode":
                StoredPicture(image, self.root)()
        except CorruptImage as error:
            return error.reason, error.detail
        except PermissionError as error:
            raise closed_file(error.filename) from None
        return None

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
            images = [StoredPicture(image, self.root)() for image in row.cells]
        except CorruptImage as error:
            raise CorruptImage(row.id, error.reason, error.detail) from error
        first = images[0] if images else None
        record: Record = {"image": first, **row.texts()}  # type: ignore[typeddict-item]
        if row.images is not None:
            record["images"] = images
        if row.answers:
            record["answers"] = list(row.answers)
        return record

    def __getitems__(self, indices: Sequence[int]) -> list[Record | SkippedRow]:
        """The rows of a batch, a :class:`SkippedRow` for every damaged one; torch calls this."""
        return load_rows(self, indices)

    def sources(self) -> list[Source]:
        """Its rows and the shard of each, as one source; read from the rows once."""
        if self._shards is None:
            cells = (row.cells[0] if row.cells else None for row in self._rows)
            self._shards = numbered(cells)
        return [Source(torch.arange(len(self)), self._shards)]

    def iter_texts(self) -> Iterator[dict[str, Any]]:
        """The texts and the id of every row, in order; no picture is read.

        Rows that do not show one picture say how many: ``num_images``.
        """
        for row in self._rows:
            number = len(row.cells)
            yield row.texts() if number == 1 else {**row.texts(), "num_images": number}


def advice(report: SkipReport) -> str:
    """What mends most of the rows that were left out of a source."""
    most = next(iter(report.counts()), None)
    return "the source is empty" if most is None else _ADVICE.get(most, "mend these rows")
