"""What a row is, and how a batch of rows survives a damaged picture.

A dataset here is a map-style torch dataset of :class:`Record`. ``dataset[i]`` gives one record or
raises :class:`CorruptImage`. A ``DataLoader`` instead calls ``dataset.__getitems__`` (torch does so
by itself), which puts a :class:`SkippedRow` where a record cannot be had; the collator takes the
two apart with :func:`split_rows`. So a damaged picture costs exactly its own row: no other row of
the batch changes, and no text is ever paired with another row's picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, Protocol, TypedDict

from PIL import Image

from unigame.data.images import MISSING, CorruptImage
from unigame.errors import UserError


class Record(TypedDict):
    """One sample. Caption-only samples have no question and answer, and the other way round.

    Attributes:
        image: RGB, upright. Of several the first one; None in a sample of text alone.
        images: All pictures, where they are not one: several, in order, or none. An answer is
            learned from them all; the game and drawing pass the sample by.
        answers: The raw answers of all annotators (ten in VQAv2), where the source has them.
        id: Unique within its dataset.
    """

    image: Image.Image | None
    question: str | None
    answer: str | None
    caption: str | None
    id: str
    answers: NotRequired[list[str]]
    images: NotRequired[list[Image.Image]]


def pictures_of(record: Mapping[str, Any]) -> list[Any]:
    """The pictures of a record: one, unless ``images`` says otherwise."""
    images = record.get("images")
    return [record.get("image")] if images is None else list(images)


def num_pictures(texts: Mapping[str, Any]) -> int:
    """How many pictures a record shows, told from the record, or from its texts alone."""
    images = texts.get("images")
    return int(texts.get("num_images", 1)) if images is None else len(images)


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """Stands in a batch where a record could not be had."""

    id: str
    reason: str
    detail: str


class RecordSource(Protocol):
    """Any map-style dataset of records."""

    def __len__(self) -> int: ...

    # Any: other people's datasets give plain dictionaries with the keys of a Record.
    def __getitem__(self, index: int, /) -> Any: ...


def load_record_or_skip(dataset: RecordSource, index: int) -> Record | SkippedRow:
    """``dataset[index]``, or a :class:`SkippedRow` if its picture is missing or corrupt."""
    try:
        return dataset[index]
    except CorruptImage as error:
        return SkippedRow(error.id or str(index), error.reason, error.detail)


def load_rows(
    dataset: RecordSource, indices: Sequence[int], max_tries: int = 1_000
) -> list[Record | SkippedRow]:
    """The rows of one batch; the body of every ``__getitems__`` here.

    A batch never comes back without any record, because a rank without a batch would leave the
    others of a distributed job waiting. If every row of it is damaged, the next readable row of
    the dataset (its own picture with its own text) is appended: deterministic, so exactly resumed.

    Raises:
        UserError: ``max_tries`` rows in a row are unreadable.
    """
    rows = [load_record_or_skip(dataset, index) for index in indices]
    if not rows:
        return rows
    following = indices[-1]
    tries = 0
    while all(isinstance(row, SkippedRow) for row in rows):
        tries += 1
        if tries > min(max_tries, len(dataset)):
            last = rows[-1]
            assert isinstance(last, SkippedRow)
            look = "check the image folder" if last.reason == MISSING else "download them again"
            raise UserError(
                f"{len(rows)} rows in a row have unreadable images, the last: row {last.id!r} "
                f"({last.reason}: {last.detail}); {look}, or run the reader with verify: decode to "
                "drop such rows first"
            )
        following = (following + 1) % len(dataset)
        rows.append(load_record_or_skip(dataset, following))
    return rows


def split_rows(
    rows: Iterable[Record | SkippedRow | dict[str, Any]],
) -> tuple[list[Record], list[SkippedRow]]:
    """Take a batch apart into its records, in order, and its skipped rows: for collators."""
    records: list[Record] = []
    skipped: list[SkippedRow] = []
    for row in rows:
        if isinstance(row, SkippedRow):
            skipped.append(row)
        else:
            records.append(row)  # type: ignore[arg-type]
    return records, skipped


def most_common_answer(answers: Sequence[str]) -> str:
    """The answer most annotators gave; of equally frequent ones the one given first."""
    assert answers, "needs at least one answer"
    # Counter keeps the order of insertion, and most_common sorts stably.
    return Counter(answers).most_common(1)[0][0]
