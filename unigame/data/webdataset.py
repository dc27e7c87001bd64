"""Webdataset tars, read map-style: an index of the shards, then single reads at known offsets.

A shard is a plain tar in which the members ``name.jpg``, ``name.txt`` and ``name.json`` that follow
each other form one sample. Streaming such shards gives up shuffling and exact resume; indexing
them costs one pass over the tar headers (no picture is read) and keeps both.
"""

from __future__ import annotations

import glob
import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from unigame.data.images import MISSING
from unigame.data.reader import NO_TEXT, Reader, Row, check_options, texts_of
from unigame.data.records import SkippedRow
from unigame.data.tables import resolve_columns
from unigame.errors import UserError

IMAGE_PARTS = ("jpg", "jpeg", "png", "webp")
TEXT_PARTS = ("txt", "caption")
MALFORMED = "malformed text or json"


class TarSlice(NamedTuple):
    """Where a picture lies: these bytes of this shard."""

    shard: str
    offset: int
    size: int


class WebDataset(Reader):
    """Samples of webdataset tars: an image, and a caption (txt) or json with text fields.

    The json may hold question, answer or answers, and caption. Samples without image or text and
    those with a malformed json are counted and left out: shards are written by crawlers, and no
    one repairs a line inside a tar.

    Args:
        path: Shards: a tar, a folder of tars, a glob (``cc3m/*.tar``), a brace pattern
            (``cc3m-{000..331}.tar``), or a list of these.
        columns: Field of the record to key of the json, where the keys have unusual names.
        verify: See :class:`Reader`; ``"exists"`` only tells whether there is an image member.
        limit: See :class:`Reader`; later shards are not even opened.

    Raises:
        UserError: No shard matches, a shard is no plain tar, nothing is left.
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
        """Nothing to do: only samples with an image member become rows."""

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
    if Path(pattern).is_dir():
        pattern = f"{glob.escape(pattern)}/*.tar"
    if Path(pattern).is_file():
        return [Path(pattern)]
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not found:
        raise UserError(f"path: no tar matches {pattern}; check the spelling, or download it first")
    return found


def _expand_braces(pattern: str) -> list[str]:
    """``a-{00..11}.tar`` and ``{a,b}.tar`` as a shell expands them; widths of numbers are kept."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    inside = match.group(1)
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers:
        first, last = numbers.groups()
        width = len(first)
        choices = [f"{n:0{width}d}" for n in range(int(first), int(last) + 1)]
        if not choices:
            raise UserError(
                f"path: {{{inside}}} in {pattern} is an empty range; put the lower first"
            )
    else:
        choices = inside.split(",")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [text for choice in choices for text in _expand_braces(before + choice + after)]


def _shard_rows(shard: Path, columns: dict[str, str]) -> Iterator[Row | SkippedRow]:
    try:
        with tarfile.open(shard, "r:") as tar:
            members = (member for member in tar if member.isreg())
            samples = itertools.groupby(members, key=lambda member: _split_name(member.name)[0])
            for key, group in samples:
                parts = {_split_name(member.name)[1]: member for member in group}
                yield _sample(tar, shard, key, parts, columns)
    except tarfile.TarError as error:
        raise UserError(
            f"{shard} is not a plain, complete tar ({error}); unpack compressed shards (gunzip), "
            "download cut ones again"
        ) from None


def _split_name(name: str) -> tuple[str, str]:
    """``dir/0001.jpg`` to ``("dir/0001", "jpg")``: a sample's key ends at the first dot."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, extension.lower()


def _sample(
    tar: tarfile.TarFile,
    shard: Path,
    key: str,
    parts: dict[str, tarfile.TarInfo],
    columns: dict[str, str],
) -> Row | SkippedRow:
    id = f"{shard.name}/{key}"
    picture = next((parts[part] for part in IMAGE_PARTS if part in parts), None)
    if picture is None:
        return SkippedRow(id, MISSING, f"members: {', '.join(parts)}")
    try:
        texts = _texts(tar, parts, columns)
    except (UserError, ValueError) as error:
        return SkippedRow(id, MALFORMED, str(error))
    if texts["question"] is None or texts["answer"] is None:
        texts |= {"question": None, "answer": None, "answers": ()}  # half a question is none
        if texts["caption"] is None:
            return SkippedRow(id, NO_TEXT, f"members: {', '.join(parts)}")
    return Row(id=id, image=TarSlice(str(shard), picture.offset_data, picture.size), **texts)


def _texts(
    tar: tarfile.TarFile, parts: dict[str, tarfile.TarInfo], columns: dict[str, str]
) -> dict[str, Any]:
    """The text fields; a txt member is the caption, over a caption in the json."""
    cells: dict[str, Any] = {}
    if "json" in parts:
        cells = json.loads(_read(tar, parts["json"]))
        if not isinstance(cells, dict):
            raise ValueError("json is not an object")
    present = {field: column for field, column in columns.items() if column in cells}
    fields = resolve_columns(cells, present, required=(), where="json")
    texts = texts_of(cells, fields, "json")
    written = next((parts[part] for part in TEXT_PARTS if part in parts), None)
    if written is not None:
        texts["caption"] = _read(tar, written).decode("utf-8-sig").strip() or texts["caption"]
    return texts


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "only regular members come here"
    with file:
        return file.read()
