"""csv and json files of a Hugging Face data set, read so that text stays text.

``datasets`` reads csv with pandas, which takes the answers None, NA and null for empty cells and
007 for a number, and json with Arrow, which takes 2014-05-01 for a point in time. So csv, and the
metadata of image folders, come through the reader that all tables here go through; json does where
``datasets`` found points in time in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from unigame.data.tables import read_table
from unigame.errors import UserError

METADATA = ("metadata.csv", "metadata.jsonl")
_TIMES = ("timestamp", "date", "time", "duration")


def load_split(path: str, split: str, **options: Any) -> Any:
    """``datasets.load_dataset``, but the text is what the files say.

    Raises:
        UserError: A malformed file, or no such split.
    """
    import datasets

    # Local csv is never shown to pandas; of the Hub one learns by loading that it is csv.
    if os.path.isdir(path) or path == "csv":
        own = _own_reader(datasets.load_dataset_builder(path, **options), split)
        if own is not None:
            return own
    table = datasets.load_dataset(path, split=split, **options)
    kind = getattr(table.info, "builder_name", "")
    if kind == "csv":
        return _own_reader(datasets.load_dataset_builder(path, **options), split)
    if kind == "json" and _has_times(table):
        files = datasets.load_dataset_builder(path, **options).config.data_files
        return _read_split(files, split, lambda paths: _table(_local(paths), _json_kind(paths)))
    return table


def _own_reader(builder: Any, split: str) -> Any | None:
    """The split of a csv or of an image folder with metadata; None: it is neither."""
    files: Mapping[str, Iterable[str]] = getattr(builder.config, "data_files", None) or {}
    if builder.name == "csv":
        return _read_split(files, split, lambda paths: _table(_local(paths), ".csv"))
    if builder.name == "imagefolder" and any(_metadata(paths) for paths in files.values()):
        return _read_split(files, split, lambda paths: _described(_metadata(paths)))
    return None


def _json_kind(paths: Iterable[str]) -> str:
    """Files of the Hub lose their names when they are downloaded."""
    return os.path.splitext(next(iter(paths)))[1]


def _read_split(
    files: Mapping[str, Iterable[str]], split: str, read: Callable[[Iterable[str]], Any]
) -> Any:
    """What a split such as ``train[:1000]`` or ``train+test`` names."""
    import datasets

    named = [part.split("[")[0].strip() for part in split.split("+")]
    for name in named:
        if name not in files:
            raise UserError(f"no split {name!r}; it has {', '.join(map(str, files))}")
    tables = {name: read(files[name]) for name in named}
    lengths = {name: len(table) for name, table in tables.items()}
    pieces = [
        tables[part.splitname].select(range(part.from_, part.to))
        for part in datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    ]
    return pieces[0] if len(pieces) == 1 else datasets.concatenate_datasets(pieces)


def _table(paths: Iterable[Path], kind: str) -> Any:
    return _dataset([row for path in paths for _, row in read_table(path, kind=kind)])


def _dataset(rows: list[dict[str, Any]]) -> Any:
    """Rows as a table; a column that some rows lack is empty there."""
    import datasets

    names = dict.fromkeys(name for row in rows for name in row)
    return datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


def _metadata(paths: Iterable[str]) -> list[Path]:
    """The metadata files among those of an image folder on this machine."""
    return [
        Path(path) for path in paths if os.path.basename(path) in METADATA and "://" not in path
    ]


def _described(metadata: Iterable[Path]) -> Any:
    """The pictures that metadata files describe, by path, with the other columns."""
    rows: list[dict[str, Any]] = []
    for path in metadata:
        for place, row in read_table(path):
            name = row.get("file_name")
            if not isinstance(name, str) or not name.strip():
                raise UserError(f"{place}: file_name is {name!r:.60}, but must name a picture")
            rest = {key: value for key, value in row.items() if key != "file_name"}
            rows.append({"image": str(path.parent / name.strip()), **rest})
    return _dataset(rows)


def _local(paths: Iterable[str]) -> list[Path]:
    """The files on this machine: those of the Hub are downloaded."""
    import datasets

    found = datasets.DownloadManager().download_and_extract(list(paths))
    return [Path(path) for path in found]


def _has_times(table: Any) -> bool:
    return any(kind in str(field.type) for field in table.data.schema for kind in _TIMES)
