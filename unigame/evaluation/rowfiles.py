"""Rows of a local folder: parquet, ``save_to_disk``, tsv, csv, jsonl or a json list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unigame.data import tables
from unigame.data.tars import is_mac_file
from unigame.errors import UserError
from unigame.evaluation.rowtables import TableRows, open_table

_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


class MalformedRow(dict[str, Any]):
    """A row that could not be read at all: it has no columns, but a reason."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


def local_rows(root: Path, config: str | None, split: str) -> Sequence[dict[str, Any]]:
    """The rows of one split in ``root``, or in its folders ``config``, ``data``, ``config/data``.

    Raises:
        UserError: no such folder, no file of a known kind, several that may be meant, or one that
            cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}; download the data, or check --data-root")
    places = [root / config, root / config / "data"] if config else []
    folders = [place for place in [*places, root, root / "data"] if place.is_dir()]
    for folder in folders:
        if (rows := _folder_rows(folder, split)) is not None:
            return rows
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    raise UserError(
        f"{root} holds no parquet, save_to_disk folder, tsv, csv, jsonl or json; it holds "
        f"{', '.join(names[:12]) or 'nothing'}"
    )


def _folder_rows(folder: Path, split: str) -> Sequence[dict[str, Any]] | None:
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _saved(folder, split)
    for suffix, read in _READERS.items():
        files = [file for file in sorted(folder.glob(f"*{suffix}")) if not is_mac_file(file.name)]
        if files:
            return read(_of_split(files, split, folder), split)
    return None


def _of_split(files: list[Path], split: str, folder: Path) -> list[Path]:
    """The files of the split: named after it, or the only ones there."""
    named = re.compile(rf"{re.escape(split)}([-_.].*)?")
    chosen = [file for file in files if named.fullmatch(file.stem)]
    if chosen:
        return chosen
    shards = [found.group(1) for file in files if (found := _SHARD.fullmatch(file.stem))]
    if shards:
        raise UserError(
            f"{folder} has no files {split}-*{files[0].suffix}; it has the split "
            f"{', '.join(sorted(set(shards)))}: download {split}, or choose another with --split"
        )
    if len(files) > 1 and files[0].suffix != ".parquet":
        raise UserError(
            f"{folder} holds several files that may be split {split!r}: "
            f"{', '.join(file.name for file in files[:5])}; name the right one "
            f"{split}{files[0].suffix}, or keep only that one"
        )
    return files


def _parquet(files: list[Path], split: str) -> Sequence[dict[str, Any]]:
    import datasets  # takes a second; only who reads such data pays it

    names = [str(file) for file in files]
    return TableRows(
        open_table(
            lambda: datasets.load_dataset("parquet", data_files={"rows": names}, split="rows"),
            f"{files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else ""),
            "was its download cut short?",
        )
    )


def _saved(folder: Path, split: str) -> Sequence[dict[str, Any]]:
    """What ``save_to_disk`` wrote: one data set, or a dictionary of splits."""
    import datasets

    saved = open_table(
        lambda: datasets.load_from_disk(str(folder)), str(folder), "was it copied whole?"
    )
    if isinstance(saved, Mapping):
        if split not in saved:
            raise UserError(f"{folder} has no split {split!r}; it has {', '.join(saved)}")
        saved = saved[split]
    return TableRows(saved)


def table_rows(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Rows of a tsv, csv, jsonl or json list, by the one reader that training has, too.

    A damaged row is a ``MalformedRow`` in its place. ``kind`` is a suffix to read it by.

    Raises:
        UserError: a file that is malformed as a whole.
    """
    return [
        MalformedRow(row.kind) if isinstance(row, tables.BadLine) else row
        for _, row in tables.scan_table(path, kind=kind)
    ]


def _table(files: list[Path], split: str) -> Sequence[dict[str, Any]]:
    return [row for file in files for row in table_rows(file)]


_READERS = {
    ".parquet": _parquet,
    ".tsv": _table,
    ".csv": _table,
    ".jsonl": _table,
    ".json": _table,
}
