"""Rows of a benchmark, from the Hub or a local folder, with the pictures left undecoded.

A benchmark asks for columns and gets dictionaries, whatever they were stored in: parquet, a folder
of ``save_to_disk``, tsv, jsonl or a json list. One bad row is a ``BadRow`` that the benchmark
counts and leaves out; a folder in which every row is bad is a ``UserError``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, overload

from unigame.data import tables
from unigame.data.tars import is_mac_file
from unigame.errors import UserError
from unigame.evaluation.base import DatasetInfo, DataSource, Item
from unigame.evaluation.pictures import picture
from unigame.evaluation.rowfiles import MalformedRow, local_rows
from unigame.evaluation.rowtables import TableRows, open_table

__all__ = [
    "BadRow",
    "Rows",
    "field",
    "find_file",
    "fingerprint",
    "picture",
    "read_json",
    "read_rows",
]

T = TypeVar("T")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class BadRow(Exception):
    """One row cannot be used; it is counted under ``reason`` and left out.

    Attributes:
        reason: such as ``"missing column question"`` or ``"answers is str, expected list"``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Rows:
    """What was read.

    Attributes:
        rows: one dictionary a row, in order. Image cells are undecoded: give them to ``picture``;
            an empty one is None.
        info: id, split and revision of the data; the fingerprint is for the benchmark to add.
        root: folder in which relative picture paths start; None for data of the Hub.
    """

    rows: Sequence[dict[str, Any]]
    info: DatasetInfo
    root: Path | None


def read_rows(
    source: DataSource,
    *,
    hub_id: str | None,
    config: str | None,
    split: str,
    required: Sequence[str],
) -> Rows:
    """All rows of one split.

    A local folder may hold ``{split}-*.parquet`` (also in ``data/`` or in a folder named like the
    configuration), other parquet files, what ``save_to_disk`` wrote, one tsv with a header, one
    jsonl or one json list.

    Args:
        source: where to read; its fields override the benchmark's own below.
        hub_id: the benchmark's data set on the Hub; None: it has none.
        config: its configuration.
        split: its split.
        required: columns without which no row is of use.

    Raises:
        UserError: nothing there, not readable, or a required column that no row has.
    """
    config, split = source.config or config, source.split or split
    if source.root is not None:
        root = source.root.expanduser()
        rows = local_rows(root, config, split)
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
    _check_columns(rows, required, where)
    return Rows(rows, info, root)


def _hub_rows(
    hub_id: str, config: str | None, split: str, revision: str | None
) -> tuple[TableRows, str]:
    import datasets  # takes a second; only who reads such data pays it

    table = open_table(
        lambda: datasets.load_dataset(hub_id, config, split=split, revision=revision),
        f"{hub_id} (config {config or 'default'}, split {split}) from the Hub",
        "check the network, or download it and give its folder with --data-root",
    )
    return TableRows(table), _commit(table) or revision or ""


def _commit(table: Any) -> str:
    """Commit of the Hub repository that a table came from; empty where nothing tells it."""
    urls = list(table.info.download_checksums or {})
    folders = [Path(file["filename"]).parent.name for file in table.cache_files]
    for place in [*urls, *folders]:
        if found := _COMMIT.search(str(place)):
            return found.group()
    return ""


def _check_columns(rows: Sequence[Mapping[str, Any]], required: Sequence[str], where: str) -> None:
    if not rows:
        raise UserError(f"{where} holds no rows; was its download cut short?")
    names = dict.fromkeys(rows.columns) if isinstance(rows, TableRows) else _names(rows)
    missing = [name for name in required if name not in names]
    if missing:
        raise UserError(
            f"{where} has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(names) or 'none'}, but {', '.join(required)} are needed: is this the "
            "right data set, in its original layout?"
        )


def _names(rows: Iterable[Mapping[str, Any]]) -> dict[str, None]:
    return {name: None for row in rows for name in row}


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
        BadRow: the value is missing, empty (None), of another type, or no text that can be written.
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
    if _has_half_characters(value):
        raise BadRow(f"{name} holds half a character (a lone surrogate)")
    return value


def _has_half_characters(value: Any) -> bool:
    """Whether a text in it is one that neither a tokenizer nor a file takes."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            if _LONE_SURROGATE.search(each):
                return True
        elif isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list):
            waiting += each
    return False


def _takes_bool(kind: Any) -> bool:
    kinds = kind if isinstance(kind, tuple) else getattr(kind, "__args__", (kind,))
    return bool in kinds or object in kinds


def _kind_name(kind: Any) -> str:
    if isinstance(kind, tuple):
        return " or ".join(each.__name__ for each in kind)
    return kind.__name__ if isinstance(kind, type) else str(kind).replace(" | ", " or ")


# ---- files of a layout of their own --------------------------------------------------------------


def read_json(path: Path) -> Any:
    """The content of a json file.

    Raises:
        UserError: no such file, not valid json, or not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; check the folder, or download it first")
    return tables.read_json(path)


def find_file(root: Path, patterns: Sequence[str], what: str) -> Path:
    """The one file of a folder that matches; earlier patterns go before later ones.

    Args:
        root: the folder.
        patterns: globs relative to it, such as ``"*questions*.json"``.
        what: for the message, such as ``"AdVQA's questions"``.

    Raises:
        UserError: no file matches any pattern, or several match the same one.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}; download the data, or check --data-root")
    for pattern in patterns:
        found = sorted(
            path for path in root.glob(pattern) if path.is_file() and not is_mac_file(path.name)
        )
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(root)) for path in found[:5])
            raise UserError(f"{root} holds several files that may be {what}: {names}; keep one")
        if found:
            return found[0]
    raise UserError(
        f"{root} has no file for {what} ({' or '.join(patterns)}); it holds {listing(root)}"
    )


def listing(root: Path, most: int = 12) -> str:
    """What a folder holds, for a message."""
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more]) or "nothing"


def fingerprint(items: Iterable[Item]) -> str:
    """SHA-256 over what the items ask and how they are scored; pictures are not read for it.

    What they show has a digest of its own in the record (``running.pictures_digest``).
    """
    digest = hashlib.sha256()
    for line in _item_lines(items):
        digest.update(line.encode())
    return digest.hexdigest()


def _item_lines(items: Iterable[Item]) -> Iterator[str]:
    for item in items:
        content = [item.id, item.prompt, dict(item.reference), item.cluster, item.samples]
        yield json.dumps(content, sort_keys=True, ensure_ascii=True, default=str) + "\n"
