"""Drawn pictures as they are scored: found, told apart by their files, decoded in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from unigame.data import CorruptImage
from unigame.data.images import decode_image, read_file
from unigame.evaluation.base import Item, Prediction

T = TypeVar("T")

AT_ONCE = 32  # pictures, or pairs, in memory together


class Drawn(NamedTuple):
    """One drawn picture: its id (item/number), its item, its file and the digest of that file."""

    id: str
    item: Item
    number: int
    file: Path
    digest: str

    def open(self) -> Image.Image:
        """Decode it, or raise ``CorruptImage``."""
        try:
            return decode_image(read_file(self.file))
        except CorruptImage as error:
            raise CorruptImage(self.id, f"drawn picture: {error.reason}", error.detail) from error


def drawn_pictures(
    items: Sequence[Item], predictions: Mapping[str, Prediction]
) -> tuple[list[Drawn], dict[str, str]]:
    """The pictures that there are, and why others are not, by id of the item or the picture."""
    drawn: list[Drawn] = []
    missing: dict[str, str] = {}
    for item in items:
        prediction = predictions.get(item.id)
        if prediction is None or prediction.error or not prediction.pictures:
            missing[item.id] = (prediction.error if prediction else "") or "no picture was drawn"
            continue
        for number, file in enumerate(prediction.pictures[: item.samples]):
            id = f"{item.id}/{number}"
            try:
                drawn.append(Drawn(id, item, number, file, digest(read_file(file))))
            except CorruptImage as error:
                missing[id] = f"drawn picture: {error.reason}"
    return drawn, missing


def without_pictures(
    items: Sequence[Item], readable: Sequence[Drawn], missing: Mapping[str, str]
) -> dict[str, str]:
    """Items of which no picture can be scored, and why not (of its first picture)."""
    scored = {each.item.id for each in readable}
    return {
        item.id: missing.get(item.id) or missing[f"{item.id}/0"]
        for item in items
        if item.id not in scored
    }


def decoded(
    drawn: Sequence[Drawn], decode: Callable[[Drawn], T], missing: dict[str, str]
) -> Iterator[list[tuple[Drawn, T]]]:
    """Batches of pictures with what ``decode`` gives; damaged ones are noted and left out."""
    for start in range(0, len(drawn), AT_ONCE):
        batch = []
        for each in drawn[start : start + AT_ONCE]:
            try:
                batch.append((each, decode(each)))
            except CorruptImage as error:
                missing[each.id] = error.reason
        if batch:
            yield batch


def digest(content: bytes) -> str:
    """First letters of the SHA-256 of a file."""
    return hashlib.sha256(content).hexdigest()[:16]
