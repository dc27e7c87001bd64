"""Rows of a local folder: parquet, ``save_to_disk``, tsv, jsonl or a json list."""

from __future__ import annotations

import codecs
import csv
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unigame.data import tables
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
        f"{root} holds no parquet, save_to_disk folder, tsv, jsonl or json; it holds "
        f"{', '.join(names[:12]) or 'nothing'}"
    )


def _folder_rows(folder: Path, split: str) -> Sequence[dict[str, Any]] | None:
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _saved(folder, split)
    for suffix, read in _READERS.items():
        files = sorted(folder.glob(f"*{suffix}"))
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


def _tsv(files: list[Path], split: str) -> Sequence[dict[str, Any]]:
    """Tab-separated with a header, quoted where needed, as pandas writes it."""
    limit = csv.field_size_limit(sys.maxsize)  # cells hold whole pictures in base64
    try:
        return [row for file in files for row in _tsv_rows(file)]
    finally:
        csv.field_size_limit(limit)


def _tsv_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t")
        try:
            names = next(reader, [])
            for cells in reader:
                if len(cells) == len(names):
                    rows.append(dict(zip(names, cells, strict=True)))
                elif cells:
                    rows.append(MalformedRow("wrong number of cells"))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}:{reader.line_num} is malformed ({error}); was its download cut short?"
            ) from None
    return rows


def json_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a json list, or of one object a line: the file's content tells which, not its name.

    Raises:
        UserError: a list that is damaged or not UTF-8. A damaged line costs only itself.
    """
    raw = path.read_bytes()
    if raw.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return [_row(row) for row in tables.read_json(path)]
    return [_json_row(line) for line in raw.splitlines() if line.strip()]


def _json_row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # also JSONDecodeError and UnicodeDecodeError
        return MalformedRow("not valid json")
    return _row(row)


def _row(row: Any) -> dict[str, Any]:
    return row if isinstance(row, dict) else MalformedRow("row is not an object")


def _jsonl(files: list[Path], split: str) -> Sequence[dict[str, Any]]:
    return [row for file in files for row in json_rows(file)]


def _json(files: list[Path], split: str) -> Sequence[dict[str, Any]]:
    return [row for file in files for row in _listed(file)]


def _listed(file: Path) -> list[dict[str, Any]]:
    rows = json_rows(file)
    # One object a line, each whole, is as good as a list; an object over many lines is not.
    if not rows or isinstance(rows[0], MalformedRow) or len(rows) == 1:
        content = tables.read_json(file)
        if not isinstance(content, list):
            raise UserError(
                f"{file} holds a {type(content).__name__}, but a list of rows is needed"
            )
    return rows


_READERS = {".parquet": _parquet, ".tsv": _tsv, ".jsonl": _jsonl, ".json": _json}
