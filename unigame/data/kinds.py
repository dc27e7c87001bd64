"""Which losses a dataset can feed: told from its texts, before any model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unigame.data.images import CorruptImage
from unigame.data.mixture import Mixture
from unigame.data.peek import peek_texts
from unigame.data.records import num_pictures

READ_UP_TO = 1_000
"""Rows that are looked at where a row can only be had together with its picture."""


@dataclass(frozen=True)
class Kinds:
    """What was found before enough was known.

    Attributes:
        rows: that were looked at.
        answered: different ones that have an answer.
        played: those of them that show one picture, which a method can work on.
        captioned: ones that have a caption.
        named: whether all answered ones have an id.
        whole: whether nothing of the dataset was left out.
    """

    rows: int
    answered: int
    played: int
    captioned: int
    named: bool
    whole: bool


def kinds_of(dataset: Any, enough: int = 1, captions: bool = False) -> Kinds | None:
    """Look at rows until ``enough`` different ones can be played on; None for a stream.

    Args:
        dataset: records; one of our readers, a mixture of them, or anything with a length.
        enough: different answered rows of one picture that need to be known of.
        captions: whether a caption must be known of, too.
    """
    if not hasattr(dataset, "__len__"):
        return None
    rows = captioned = unnamed = 0
    played: set[str] = set()
    others: set[str] = set()
    whole = _can_be_read_whole(dataset)
    for source, record in _records(dataset):
        rows += 1
        captioned += bool(record.get("caption"))
        if record.get("answer"):
            name = record.get("id")
            unnamed += name is None or name == ""
            own = f"{source}:{name}" if name not in (None, "") else f"{source}: row {rows}"
            (played if num_pictures(record) == 1 else others).add(own)
        if len(played) >= enough and (captioned or not captions):
            whole = False
            break
    answered = len(played | others)
    return Kinds(rows, answered, len(played), captioned, named=not unnamed, whole=whole)


def holds_pictures_alone(dataset: Any) -> bool:
    """Whether a source was asked for rows that hold nothing but a picture."""
    return any(getattr(part, "picture_only", False) for part in _parts(dataset))


def _parts(dataset: Any) -> list[Any]:
    """The sources of a mixture: an epoch of it may show only some of their rows."""
    if isinstance(dataset, Mixture):
        return [part for source in dataset.datasets for part in _parts(source)]
    return [dataset]


def _can_be_read_whole(dataset: Any) -> bool:
    return all(peek_texts(part) is not None or len(part) <= READ_UP_TO for part in _parts(dataset))


def _records(dataset: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number of the source, and a record, which may lack its picture."""
    for number, part in enumerate(_parts(dataset)):
        texts = peek_texts(part)
        if texts is not None:
            yield from ((number, record) for record in texts if isinstance(record, Mapping))
            continue
        for row in range(min(len(part), READ_UP_TO)):
            try:
                record = part[row]
            except CorruptImage:  # it counts for nothing in training either
                continue
            if isinstance(record, Mapping):
                yield number, record
