"""Rows of a benchmark, from the Hub or a local folder, with the pictures left undecoded.

A benchmark asks for columns and gets dictionaries, whatever they were stored in: parquet, a folder
of ``save_to_disk``, tsv, jsonl or a json list. One bad row is a ``BadRow`` that the benchmark
counts and leaves out; a folder in which every row is bad is a ``UserError``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, overload

from unigame.data.paths import is_mac_file
from unigame.data.pictures import picture
from unigame.data.rows import TableRows, TextRows, is_saved, open_saved, open_split
from unigame.data.tables import MalformedRow, read_json, scan_table
from unigame.errors import UserError
from unigame.evaluation.base import DatasetInfo, DataSource, Item

__all__ = ["BadRow", "Rows", "field", "fingerprint", "picture", "read_json", "read_rows"]

TABLES = (".tsv", ".csv", ".jsonl", ".json")

T = TypeVar("T")

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")
_YEAR = re.compile(r"(?<=[a-z_-])(?:19|20)\d\d(?!\d)")
_DIGITS = re.compile(r"[0-9a-f]*\d[0-9a-f]*")
# Spellings of splits. Not dev for validation: MMMU has both.
_SPLITS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "dev",
    "test": "test",
    "testdev": "testdev",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")


class BadRow(Exception):
    """One row cannot be used; it is counted under ``reason`` and left out.

    Attributes:
        reason: such as ``"missing column question"`` or ``"question is int, expected str"``.
        detail: what exactly is wrong with this row, and what mends it; empty: no more is known.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Rows:
    """What was read.

    Attributes:
        rows: one dictionary a row, in order. Image cells are undecoded: give them to ``picture``;
            an empty one is None.
        info: id, split and revision of the data; the fingerprint is for the benchmark to add.
        root: folder in which relative picture paths start; None for data of the Hub.
        columns: those that at least one row has; of a benchmark's own files, none are listed.
    """

    rows: Sequence[dict[str, Any]]
    info: DatasetInfo
    root: Path | None
    columns: tuple[str, ...] = ()


def read_rows(
    source: DataSource,
    *,
    hub_id: str | None,
    config: str | None,
    split: str,
    required: Sequence[str | tuple[str, ...]],
    own: str = "",
) -> Rows:
    """All rows of one split.

    A local folder may hold ``{split}-*.parquet`` (also in ``data/`` or in a folder named like the
    configuration), one other parquet file or its numbered parts, what ``save_to_disk`` wrote, one
    tsv with a header, one jsonl or one json list. ``val`` is ``validation``; a file that is named
    after another split is refused.

    Args:
        source: where to read; its fields override the benchmark's own below.
        hub_id: the benchmark's data set on the Hub; None: it has none.
        config: its configuration.
        split: its split.
        required: columns without which no row is of use; of a tuple of columns, one of them.
        own: what to say to people who bring a table of their own, where a column is missing.

    Raises:
        UserError: nothing there, not readable, or a required column that no row has.
    """
    config, split = source.config or config, source.split or split
    if source.root is not None:
        root = source.root.expanduser()
        rows = _local_rows(root, config, split)
        info = DatasetInfo(id=root.name, split=split, config=config or "")
        where = str(root)
    else:
        hub_id = source.hub_id or hub_id
        if hub_id is None:
            raise UserError(
                "this benchmark has no data set on the Hub; download its files and give their "
                "folder with --data-root"
            )
        rows, revision = _hub_rows(hub_id, config, split, source.revision)
        root, where = None, f"{hub_id} ({split})"
        info = DatasetInfo(id=hub_id, split=split, config=config or "", revision=revision)
    return Rows(rows, info, root, _checked_columns(rows, required, where, own))


def _hub_rows(
    hub_id: str, config: str | None, split: str, revision: str | None
) -> tuple[TableRows | TextRows, str]:
    options = {"name": config, "revision": revision}
    rows = open_split(
        hub_id,
        split,
        advice="check the network, or download it and give its folder with --data-root",
        **{key: value for key, value in options.items() if value is not None},
    )
    return rows, _commit(rows) or revision or ""


def _commit(rows: TableRows | TextRows) -> str:
    """Commit of the Hub repository that rows came from; empty where nothing tells it."""
    if isinstance(rows, TextRows):
        places = rows.files
    else:
        folders = [Path(file["filename"]).parent.name for file in rows.table.cache_files]
        places = [*map(str, rows.table.info.download_checksums or {}), *folders]
    found = next(filter(None, map(_COMMIT.search, places)), None)
    return found.group() if found else ""


def _checked_columns(
    rows: TableRows | TextRows, required: Sequence[str | tuple[str, ...]], where: str, own: str
) -> tuple[str, ...]:
    """The columns of a table that has what is needed."""
    if not rows:
        raise UserError(f"{where} holds no rows; was its download cut short?")
    names = rows.columns
    wanted = [(each,) if isinstance(each, str) else each for each in required]
    missing = [repr(each[0]) for each in wanted if not {*each} & {*names}]
    if missing:
        raise UserError(
            f"{where} has no column {', '.join(missing)}; it has {', '.join(names) or 'none'}, but "
            f"{', '.join(each[0] for each in wanted)} are needed: is this the right data set, in "
            f"its original layout?{f' {own}' if own else ''}"
        )
    return tuple(names)


# ---- a local folder ------------------------------------------------------------------------------


def _local_rows(root: Path, config: str | None, split: str) -> TableRows | TextRows:
    """The rows of a split in ``root``, or in its folders ``config``, ``data``, ``config/data``."""
    if not root.is_dir():
        raise UserError(f"no folder {root}; download the data, or check --data-root")
    places = [root / config, root / config / "data"] if config else []
    for folder in (place for place in [*places, root, root / "data"] if place.is_dir()):
        if is_saved(folder):
            return open_saved(folder, split)
        for suffix in (".parquet", *TABLES):
            files = [
                path for path in sorted(folder.glob(f"*{suffix}")) if not is_mac_file(path.name)
            ]
            if files:
                return _file_rows(_of_split(files, split, folder), suffix)
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    raise UserError(
        f"{root} holds no parquet, save_to_disk folder, {', '.join(TABLES)}; it holds "
        f"{', '.join(names[:12]) or 'nothing'}"
    )


def _file_rows(files: list[Path], suffix: str) -> TableRows | TextRows:
    if suffix != ".parquet":
        return TextRows(row for file in files for row in table_rows(file))
    names = {"rows": [str(file) for file in files]}
    return open_split("parquet", "rows", data_files=names, advice="was its download cut short?")


def table_rows(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Rows of a tsv, csv, jsonl or json list; a damaged one is a ``MalformedRow`` in its place.

    Args:
        path: the file.
        kind: a suffix to read it by, instead of its own.

    Raises:
        UserError: a file that is malformed as a whole.
    """
    return [row for _, row in scan_table(path, kind=kind)]


def _of_split(files: list[Path], split: str, folder: Path) -> list[Path]:
    """The files of the split: named after it, or the only ones there, if they name no other."""
    suffix = files[0].suffix
    if chosen := _named(files, split):
        return _whole(chosen, folder)
    synonyms = [_named(files, name) for name in _SPLITS if _same_split(name, split)]
    spelled = [chosen for chosen in synonyms if chosen]
    if len(spelled) == 1:
        return _whole(spelled[0], folder)
    shards = [found.group(1) for file in files if (found := _SHARD.fullmatch(file.stem))]
    if shards:
        raise UserError(
            f"{folder} has no files {split}-*{suffix}; it has the split "
            f"{', '.join(sorted(set(shards)))}: download {split}, or choose another with --split"
        )
    if len(files) > 1 and not (suffix == ".parquet" and _are_parts(files)):
        raise UserError(
            f"{folder} holds several files that may be split {split!r}: "
            f"{', '.join(file.name for file in files[:5])}; name the right one {split}{suffix}, "
            "keep only that one, or choose another split with --split"
        )
    if other := _another_split(files[0].stem, split):
        raise UserError(
            f"{folder} has no file of split {split!r}: {files[0].name} is named after {other!r}; "
            f"choose that with --split {other}, or rename the file {split}{suffix} if it is the "
            "right one"
        )
    return files


def _whole(files: list[Path], folder: Path) -> list[Path]:
    """The files, if their names do not count more of them than there are.

    Raises:
        UserError: a part is missing: a figure of the rest would be no figure of the benchmark.
    """
    found = [parts for file in files if (parts := _SHARD.fullmatch(file.stem))]
    for name, number in sorted({(parts[1], parts[3]) for parts in found}):
        here = {int(parts[2]) for parts in found if (parts[1], parts[3]) == (name, number)}
        lacking = [part for part in range(int(number)) if part not in here]
        if len(here) < int(number):  # some count from 1
            shown = ", ".join(f"{part:05d}" for part in lacking[:5])
            raise UserError(
                f"{folder} has {len(here)} of the {int(number)} files of {name}; download the "
                f"others ({shown}{', ...' if len(lacking) > 5 else ''})"
            )
    return files


def _named(files: Sequence[Path], split: str) -> list[Path]:
    named = re.compile(rf"{re.escape(split)}([-_.].*)?")
    return [file for file in files if named.fullmatch(file.stem)]


def _same_split(one: str, two: str) -> bool:
    return _SPLITS.get(one.lower(), one.lower()) == _SPLITS.get(two.lower(), two.lower())


def _another_split(stem: str, split: str) -> str:
    """The split that a file's name names, where it is another one; empty otherwise."""
    words = re.findall("[a-z]+", stem.lower())
    names = [*words, *map("".join, pairwise(words))]  # test-dev is testdev
    if any(_same_split(name, split) for name in names):
        return ""
    return next((name for name in names if name in _SPLITS), "")


def _are_parts(files: Sequence[Path]) -> bool:
    """Whether files are parts of one table: named alike but for numbers, save years, and hashes."""
    stems = [file.stem.lower() for file in files]
    alike = len({_DIGITS.sub("#", stem) for stem in stems}) == 1
    return alike and len({tuple(_YEAR.findall(stem)) for stem in stems}) == 1


# ---- single values -------------------------------------------------------------------------------


@overload
def field(row: Mapping[str, Any], name: str, kind: type[T]) -> T: ...
@overload
def field(row: Mapping[str, Any], name: str, kind: UnionType | tuple[type, ...]) -> Any: ...
def field(row: Mapping[str, Any], name: str, kind: Any) -> Any:
    """One value of a row, of the type it must have.

    Whole numbers may be written as text (``"12"``), as a tsv has them; ``kind=float`` takes whole
    numbers too. Nothing else is converted.

    Args:
        row: from ``Rows.rows``.
        name: the column.
        kind: a type, or a union of types such as ``int | str``.

    Raises:
        BadRow: the value is missing, empty (None), or of another type.
    """
    value = row.get(name)
    if value is None:
        raise BadRow(row.reason if isinstance(row, MalformedRow) else f"missing column {name}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value):
        return int(value)
    # True is an int to Python, but not to whoever wrote a column of numbers.
    stray_bool = isinstance(value, bool) and not _takes_bool(kind)
    if stray_bool or not isinstance(value, kind):
        raise BadRow(f"{name} is {type(value).__name__}, expected {_kind_name(kind)}")
    return value


def _takes_bool(kind: Any) -> bool:
    kinds = kind if isinstance(kind, tuple) else getattr(kind, "__args__", (kind,))
    return bool in kinds or object in kinds


def _kind_name(kind: Any) -> str:
    if isinstance(kind, tuple):
        return " or ".join(each.__name__ for each in kind)
    return kind.__name__ if isinstance(kind, type) else str(kind).replace(" | ", " or ")


def fingerprint(items: Iterable[Item]) -> str:
    """SHA-256 over what the items ask and how they are scored; pictures are not read for it.

    What they show has a digest of its own in the record (``running.pictures_digest``).
    """
    digest = hashlib.sha256()
    for item in items:
        content = [item.id, item.prompt, dict(item.reference), item.cluster, item.samples]
        line = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str) + "\n"
        digest.update(line.encode())
    return digest.hexdigest()
