"""Webdataset tars, read map-style: an index of the shards, then single reads at known offsets.

A shard is a plain tar in which the members ``name.jpg``, ``name.txt`` and ``name.json`` that follow
each other form one sample. Streaming such shards gives up shuffling and exact resume; indexing
them costs one pass over the tar headers (no picture is read) and keeps both.
"""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from unigame.data.images import CORRUPT, IMAGE_SUFFIXES, MISSING, CorruptImage
from unigame.data.reader import NO_TEXT, SECOND_PICTURE, Reader, Row, check_options, texts_of
from unigame.data.records import SkippedRow
from unigame.data.tables import resolve_columns
from unigame.data.tars import LongEnd, Member, read_members
from unigame.errors import UserError
from unigame.system.json_text import parse_json, printable

IMAGE_PARTS = tuple(suffix.lstrip(".") for suffix in IMAGE_SUFFIXES)
TEXT_PARTS = ("txt", "caption")
MALFORMED = "malformed text or json"
DUPLICATE = "duplicate member"
NOT_A_FILE = "member is no plain file"
LONG_END = "shard ends in zeros"

MAX_SHARDS = 100_000
"""More names than this are a slip in a brace pattern, and would not end."""

_LONGEST_NUMBER = 18


class TarSlice(NamedTuple):
    """Where a picture lies: these bytes of this shard."""

    shard: str
    offset: int
    size: int


class WebDataset(Reader):
    """Samples of webdataset tars: an image, and a caption (txt) or json with text fields.

    The json may hold question, answer or answers, and caption. Samples without image or text and
    those with a malformed json are counted and left out: shards are written by crawlers, and no
    one repairs a line inside a tar. So are members that come twice in a sample, and second
    pictures: what belongs to which cannot be told.

    Args:
        path: Shards: a tar, a folder of tars, a glob (``cc3m/*.tar``), a brace pattern
            (``cc3m-{000..331}.tar``), or a list of these.
        columns: Field of the record to key of the json, where the keys have unusual names.
        verify: See :class:`Reader`; ``"exists"`` only tells whether there is an image member.
        limit: See :class:`Reader`; later shards are not even opened.

    Raises:
        UserError: No shard matches, a shard is no plain tar or is damaged, nothing is left.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        *,
        columns: Mapping[str, str] | None = None,
        verify: str = "exists",
        limit: int | None = None,
    ) -> None:
        check_options(verify=verify, limit=limit)
        # The names are checked once; that a sample lacks a key is common, and no error.
        resolve_columns(
            list((columns or {}).values()) if isinstance(columns, Mapping) else (),
            columns,
            required=(),
            where="json",
        )
        shards = expand_shards(path)
        rows = (row for shard in shards for row in _shard_rows(shard, dict(columns or {})))
        super().__init__(rows, where=str(path), verify=verify, limit=limit)

    def check_image(self, row: Row) -> None:
        """Only samples with an image member become rows; it may still be empty."""
        if not row.image.size:
            raise CorruptImage(row.id, CORRUPT, "empty file")

    def read_image(self, row: Row) -> bytes:
        """The picture's bytes, read at its offset; safe in any number of workers."""
        shard, offset, size = row.image
        with open(shard, "rb") as file:
            file.seek(offset)
            return file.read(size)


def expand_shards(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The tars that a path, folder, glob, brace pattern or list of them names, in order.

    Raises:
        UserError: A pattern matches no tar, or the tars are compressed.
    """
    patterns = [path] if isinstance(path, str | Path) else path
    if not isinstance(patterns, Sequence) or not patterns:
        raise UserError(f"path must name tars, got {path!r}")
    shards: list[Path] = []
    for pattern in patterns:
        for single in _expand_braces(str(Path(pattern).expanduser())):
            shards += _expand_one(single)
    return list(dict.fromkeys(shards))


def _expand_one(pattern: str) -> list[Path]:
    try:
        return _found_by(pattern)
    except OSError as error:  # a name that is too long, or a folder that is closed
        raise UserError(f"path: {pattern:.200} cannot be looked up: {error.strerror}") from None


def _found_by(pattern: str) -> list[Path]:
    if Path(pattern).is_dir():
        pattern = f"{glob.escape(pattern)}/*.tar"
    if Path(pattern).is_file():
        return [Path(pattern)]
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not found:
        raise UserError(f"path: no tar matches {pattern}; check the spelling, or download it first")
    return found


def _expand_braces(pattern: str) -> list[str]:
    """``a-{00..11}.tar`` and ``{a,b}.tar`` as a shell expands them; widths of numbers are kept.

    Raises:
        UserError: An empty range, or more names than :data:`MAX_SHARDS`.
    """
    done: list[str] = []
    todo = [pattern]
    while todo:
        text = todo.pop()
        match = re.search(r"\{([^{}]*)\}", text)
        if match is None:
            done.append(text)
            continue
        choices = _choices(match.group(1), pattern)
        before, after = text[: match.start()], text[match.end() :]
        todo += [before + choice + after for choice in reversed(choices)]
        if len(done) + len(todo) > MAX_SHARDS:
            raise UserError(_too_many(pattern))
    return done


def _choices(inside: str, pattern: str) -> list[str]:
    """What stands for one pair of braces."""
    numbers = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", inside)
    if not numbers:
        return inside.split(",")
    if max(map(len, numbers.groups())) > _LONGEST_NUMBER:
        raise UserError(_too_many(pattern))
    first, last = map(int, numbers.groups())
    if first > last:
        raise UserError(f"path: {{{inside}}} in {pattern} is an empty range; put the lower first")
    if last - first >= MAX_SHARDS:
        raise UserError(_too_many(pattern))
    return [f"{n:0{len(numbers[1])}d}" for n in range(first, last + 1)]


def _too_many(pattern: str) -> str:
    return (
        f"path: {pattern:.200} names more than {MAX_SHARDS} tars; correct the range in its braces"
    )


def _shard_rows(shard: Path, columns: dict[str, str]) -> Iterator[Row | SkippedRow]:
    with _opened(shard) as file:
        ends: list[LongEnd] = []
        for key, members in _samples(_members_of(shard, ends)):
            yield from _sample(file, shard, key, members, columns)
        for end in ends:
            detail = f"{end.zeros} bytes of zeros at its end; a download that stopped looks like it"
            yield SkippedRow(shard.name, LONG_END, detail)


def _opened(shard: Path) -> BinaryIO:
    try:
        return shard.open("rb")
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error}") from None


def _members_of(shard: Path, ends: list[LongEnd]) -> Iterator[Member]:
    """The members alone; an end that is longer than usual is put into ``ends``."""
    for member in read_members(shard):
        if isinstance(member, LongEnd):
            ends.append(member)
        else:
            yield member


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
    columns: dict[str, str],
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
    yield _row(file, shard, key, parts, picture, columns)


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
    columns: dict[str, str],
) -> Row | SkippedRow:
    id = _id(shard, key)
    if picture is None:
        return SkippedRow(id, MISSING, f"members: {', '.join(parts)}")
    for member in parts.values():
        if member.unusable:
            return SkippedRow(id, NOT_A_FILE, f"{member.name}: {member.unusable}")
    try:
        texts = _texts(file, parts, columns)
    except (UserError, ValueError) as error:
        return SkippedRow(id, MALFORMED, str(error))
    if texts["question"] is None or texts["answer"] is None:
        texts |= {"question": None, "answer": None, "answers": ()}  # half a question is none
        if texts["caption"] is None:
            return SkippedRow(id, NO_TEXT, f"members: {', '.join(parts)}")
    return Row(id=id, image=TarSlice(str(shard), picture.offset, picture.size), **texts)


def _id(shard: Path, name: str) -> str:
    """Names in a tar may be any bytes; ids are text that can be printed."""
    return printable(f"{shard.name}/{name}")


def _texts(file: BinaryIO, parts: dict[str, Member], columns: dict[str, str]) -> dict[str, Any]:
    """The text fields; a txt member is the caption, over a caption in the json."""
    cells: dict[str, Any] = {}
    if "json" in parts:
        cells = parse_json(_read(file, parts["json"]))
        if not isinstance(cells, dict):
            raise ValueError("json is not an object")
    present = {field: column for field, column in columns.items() if column in cells}
    fields = resolve_columns(cells, present, required=(), where="json")
    texts = texts_of(cells, fields, "json")
    written = next((parts[part] for part in TEXT_PARTS if part in parts), None)
    if written is not None:
        texts["caption"] = _read(file, written).decode("utf-8-sig").strip() or texts["caption"]
    return texts


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)
