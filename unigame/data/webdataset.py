"""Webdataset tars, read map-style: an index of the shards, then single reads at known offsets.

A shard is a plain tar in which the members ``name.jpg``, ``name.txt`` and ``name.json`` that follow
each other form one sample. `datasets` refuses a shard in which a member comes twice, wants the same
members in all samples, and copies all pictures into its cache; streams give up shuffling and exact
resume. Indexing costs one pass over the tar headers (no picture is read).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from unigame.data.dataset import SECOND_PICTURE, RecordDataset, Row
from unigame.data.images import IMAGE_SUFFIXES, MISSING
from unigame.data.pairs import check_fields, find_columns, lenient_row, texts_of
from unigame.data.paths import expand_shards
from unigame.data.pictures import TarSlice
from unigame.data.records import SkippedRow
from unigame.data.tars import Member, read_members
from unigame.errors import UserError
from unigame.system.json_text import parse_json, printable
from unigame.system.say import warn

IMAGE_PARTS = tuple(suffix.lstrip(".") for suffix in IMAGE_SUFFIXES)
TEXT_PARTS = ("txt", "caption")
MALFORMED = "malformed text or json"
DUPLICATE = "duplicate member"
NOT_A_FILE = "member is no plain file"
LONG_END = "shard ends in zeros"
MOST_KEYS = 20


class WebDataset(RecordDataset):
    """Samples of webdataset tars: an image, and a caption (txt) or json with text fields.

    The json may hold question, answer or answers, and caption. Samples without image or text and
    those with a malformed json are counted and left out: shards are written by crawlers, and no
    one repairs a line inside a tar. So are members that come twice in a sample, and second
    pictures: what belongs to which cannot be told.

    Args:
        path: Shards: a tar, a folder of tars, a glob (``cc3m/*.tar``), a brace pattern
            (``cc3m-{000..331}.tar``), or a list of these.
        columns: Field of the record to key of the json, where the keys have unusual names. A sample
            without that key is read by the usual names. A caption that is named so is taken
            before a txt.
        picture_only: Whether samples of a picture without text are kept.
        verify: See :class:`RecordDataset`; ``"exists"`` only tells whether an image is there.
        limit: See :class:`RecordDataset`; later shards are not even opened.

    Raises:
        UserError: No shard matches, a shard is no plain tar or is damaged, a key of ``columns`` is
            in no sample (of those that ``limit`` lets in, that is a warning), nothing is left.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        *,
        columns: Mapping[str, str] | None = None,
        picture_only: bool = False,
        verify: str = "exists",
        limit: int | None = None,
    ) -> None:
        names = Columns(check_fields(columns))
        shards = expand_shards(path)

        def rows() -> Iterator[Row | SkippedRow]:
            for shard in shards:
                yield from _shard_rows(shard, names, picture_only)
            # Before it is said that no row can be used. A limit that ends the reading earlier has
            # not seen enough to say that a key is nowhere.
            names.require_met(path)

        self.picture_only = picture_only
        super().__init__(rows(), where=str(path), root=None, verify=verify, limit=limit)
        if missing := names.unmet(path):
            warn(f"{missing} (only {limit} rows were read)")


class Columns:
    """The user's mapping of field to key of the json, and which of the keys came.

    Args:
        names: field to key.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = dict(names)
        self._unmet: dict[str, str] = {}
        self._read = False
        self._keys: dict[str, None] = {}
        """Of the first samples, in order, for the message."""

    def present(self, cells: Mapping[str, Any], parts: Iterable[str]) -> dict[str, str]:
        """Those of the mapping that a sample has.

        Args:
            cells: its json.
            parts: its members; ``{image: jpg, caption: txt}`` names what is read in any case.
        """
        if not self._read:
            self._read, self._unmet = True, self.names
        if self._unmet:
            met = {*cells, *set(parts).intersection((*IMAGE_PARTS, *TEXT_PARTS))}
            self._unmet = {field: key for field, key in self._unmet.items() if key not in met}
            if len(self._keys) < MOST_KEYS:
                self._keys |= dict.fromkeys(cells)
        return {field: key for field, key in self.names.items() if key in cells}

    def unmet(self, where: object) -> str:
        """What to say of a key that no sample had so far; empty where all came."""
        found = ", ".join(list(self._keys)[:MOST_KEYS]) or "nothing"
        return next(
            (
                f"columns: no json of {where} that was read has {key!r} for the {field}; it has "
                f"{found}: correct the name"
                for field, key in self._unmet.items()
            ),
            "",
        )

    def require_met(self, where: object) -> None:
        """Check that each key was in a sample.

        Raises:
            UserError: one was in none; it is misspelled.
        """
        if missing := self.unmet(where):
            raise UserError(missing)


def _shard_rows(shard: Path, columns: Columns, picture_only: bool) -> Iterator[Row | SkippedRow]:
    try:
        opened = shard.open("rb")
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error}") from None
    with opened as file:
        ends: list[int] = []
        for key, members in _samples(read_members(shard, ends)):
            yield from _sample(file, shard, key, members, columns, picture_only)
        for zeros in ends:
            detail = f"{zeros} bytes of zeros at its end; a download that stopped looks like it"
            yield SkippedRow(shard.name, LONG_END, detail)


def _samples(members: Iterable[Member]) -> Iterator[tuple[str, list[tuple[str, Member]]]]:
    """Key and (part, member) of the samples: members that follow each other under one key.

    A key ends at the first dot of the name (``a.png``, ``a.seg.png``: parts of a), as webdataset
    has it. Where that gives a sample without a picture it ends at the last one, for names such as
    ``photo.v1.png``.
    """
    for key, group in itertools.groupby(members, key=lambda member: _first_dot(member.name)[0]):
        together = list(group)
        parts = [(_first_dot(member.name)[1], member) for member in together]
        if any(part in IMAGE_PARTS for part, _ in parts):
            yield key, parts
            continue
        for finer, few in itertools.groupby(together, key=lambda m: _last_dot(m.name)[0]):
            yield finer, [(_last_dot(member.name)[1], member) for member in few]


def _first_dot(name: str) -> tuple[str, str]:
    """``dir/0001.jpg`` to ``("dir/0001", "jpg")``."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, extension.lower()


def _last_dot(name: str) -> tuple[str, str]:
    """``dir/photo.v1.png`` to ``("dir/photo.v1", "png")``."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")), path.suffix[1:].lower()


def _sample(
    file: BinaryIO,
    shard: Path,
    key: str,
    members: Sequence[tuple[str, Member]],
    columns: Columns,
    picture_only: bool,
) -> Iterator[Row | SkippedRow]:
    """One sample as a row, and what it has twice as skipped rows."""
    parts: dict[str, Member] = {}
    repeated = False
    for part, member in members:
        # From the first name that comes again on no one can tell what belongs to which.
        repeated = repeated or part in parts
        if repeated:
            yield SkippedRow(_id(shard, member.name), DUPLICATE, f"{key} has {part} twice")
        else:
            parts[part] = member
    picture = next((parts[part] for part in IMAGE_PARTS if part in parts), None)
    for part, member in parts.items():
        if picture is not None and member is not picture and _is_sample(part, parts):
            yield SkippedRow(_id(shard, member.name), SECOND_PICTURE, f"beside {picture.name}")
    yield _row(file, shard, key, parts, picture, columns, picture_only)


def _is_sample(part: str, parts: Mapping[str, Member]) -> bool:
    """Whether a picture could be a sample of its own: ``a.png``, or ``a.2.png`` with ``a.2.txt``.

    A mask such as ``a.seg.png`` is only a part of a.
    """
    field, _, suffix = part.rpartition(".")
    texts = (f"{field}.{kind}" for kind in (*TEXT_PARTS, "json"))
    return suffix in IMAGE_PARTS and (not field or any(text in parts for text in texts))


def _row(
    file: BinaryIO,
    shard: Path,
    key: str,
    parts: dict[str, Member],
    picture: Member | None,
    columns: Columns,
    picture_only: bool,
) -> Row | SkippedRow:
    id = _id(shard, key)
    if picture is None:
        return SkippedRow(id, MISSING, f"members: {', '.join(parts)}")
    for member in parts.values():
        if member.unusable:
            return SkippedRow(id, NOT_A_FILE, f"{member.name}: {member.unusable}")
    try:
        texts = _texts(file, parts, columns)
    except ValueError as error:
        return SkippedRow(id, MALFORMED, str(error))
    cell = TarSlice(str(shard), picture.offset, picture.size)
    place = f"members: {', '.join(parts)}"
    return lenient_row(id, cell, texts, place, picture_only=picture_only)


def _id(shard: Path, name: str) -> str:
    """Names in a tar may be any bytes; ids are text that can be printed."""
    return printable(f"{shard.name}/{name}")


def _texts(file: BinaryIO, parts: dict[str, Member], columns: Columns) -> dict[str, Any]:
    """The text fields; a txt member is the caption, over one in the json that no one named."""
    cells: dict[str, Any] = {}
    if "json" in parts:
        cells = parse_json(_read(file, parts["json"]))
        if not isinstance(cells, dict):
            raise ValueError("json is not an object")
    present = columns.present(cells, parts)
    fields = find_columns(cells, present, where="json")
    texts = texts_of(cells, fields, "json")
    written = next((parts[part] for part in TEXT_PARTS if part in parts), None)
    if written is not None and not ("caption" in present and texts["caption"]):
        texts["caption"] = _read(file, written).decode("utf-8-sig").strip() or texts["caption"]
    return texts


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)
