"""The one reader of rows, of training and of evaluation: dictionaries, their pictures undecoded.

`datasets` finds the files of a split, and reads parquet, arrow, json, what ``save_to_disk`` wrote,
and the Hub. It reads csv with pandas, which takes the answers None and NA for empty cells and 007
for a number, and json with Arrow, which takes 2014-05-01 for a point in time, and the text "2" for
a number where other rows of its column hold a list; neither names the line of a damaged row. So
csv, tsv, metadata of image folders, json with points in time or columns of several kinds, and
every table that is named as such come through :mod:`unigame.data.tables`.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from unigame.data.pictures import TableCell
from unigame.data.tables import TABLE_SUFFIXES, read_table
from unigame.errors import UserError

BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
"""How `datasets` calls what reads a kind of file."""

METADATA = ("metadata.csv", "metadata.jsonl")
"""Of an image folder: its pictures' texts."""

_NOT_AS_WRITTEN = ("timestamp", "date", "time", "duration", "arrow.json")
_BATCH = 1_000


class TableRows(Sequence[dict[str, Any]]):
    """Rows of a ``datasets.Dataset``; pictures stay in it, as :class:`TableCell` or path.

    A benchmark of 200,000 pictures is tens of gigabytes; only the text comes into memory.
    """

    def __init__(self, table: Any, own_files: bool = False) -> None:
        import datasets

        self._own_files = own_files

        self.columns: list[str] = list(table.column_names)
        images = [name for name, kind in table.features.items() if _is_image(kind)]
        stored = datasets.Image(decode=False)
        for name in images:
            kind = table.features[name]
            if isinstance(_item(kind), datasets.Image):
                table = table.cast_column(name, replace(kind, feature=stored))
            elif isinstance(kind, datasets.Image):
                table = table.cast_column(name, stored)
        self.table = table
        self._pictures = {name: table.select_columns([name]) for name in images}
        # Each is a copy of the table's description, which costs more than reading a row.
        self._arrow = {name: one.with_format("arrow") for name, one in self._pictures.items()}
        self._texts = table.remove_columns(images)

    def only(self, columns: Iterable[str]) -> TableRows:
        """The same rows with these columns alone; others cost time and memory to read."""
        chosen = self.table.select_columns(list(dict.fromkeys(columns)))
        return TableRows(chosen, self._own_files)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        numbers = range(len(self))[index]  # raises IndexError, takes negative numbers
        if isinstance(numbers, range):
            return [self[number] for number in numbers]
        return next(self._batch(numbers, numbers + 1))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), _BATCH):
            yield from self._batch(start, min(start + _BATCH, len(self)))

    def _batch(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        cells = {
            name: self._as_files(_shown(table, self._arrow[name][start:stop].column(0), start))
            for name, table in self._pictures.items()
        }
        try:
            cells |= self._texts[start:stop] if self._texts.column_names else {}
        except UnicodeDecodeError as error:  # Arrow takes any bytes for text until they are read
            raise UserError(
                f"rows {start} to {stop} of column {', '.join(self._texts.column_names)} hold text "
                f"that is not UTF-8 ({error}); download the data again, or write it anew"
            ) from None
        for values in zip(*(cells[name] for name in self.columns), strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def _as_files(self, cells: list[Any]) -> list[Any]:
        """Paths that `datasets` itself found or downloaded; a text that a row holds stays one."""
        if not self._own_files:
            return cells
        return [Path(cell) if isinstance(cell, str) else cell for cell in cells]


def _shown(table: Any, cells: Any, start: int) -> list[Any]:
    """The cells of a column of pictures, or of lists of them, without reading any.

    Args:
        table: of this column.
        cells: some of it, as Arrow keeps them.
        start: the number of the first of them.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    if pa.types.is_nested(cells.type) and not pa.types.is_struct(cells.type):
        lengths = [length or 0 for length in pc.list_value_length(cells).to_pylist()]
        stored = iter(_stored(pc.list_flatten(cells)))
        return [
            [
                TableCell(table, start + offset, place) if here else path
                for place, (here, path) in enumerate(itertools.islice(stored, length))
            ]
            for offset, length in enumerate(lengths)
        ]
    return [
        TableCell(table, start + offset) if here else path
        for offset, (here, path) in enumerate(_stored(cells))
    ]


def _stored(cells: Any) -> list[tuple[bool, str | None]]:
    """Of each picture of a column, whether its bytes are there, and its path."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    paths = [None] * len(cells)
    embedded = pc.is_valid(cells)
    if pa.types.is_struct(cells.type):
        embedded = pc.and_(embedded, pc.is_valid(pc.struct_field(cells, "bytes")))
        paths = pc.struct_field(cells, "path").to_pylist()
    return list(zip(embedded.to_pylist(), paths, strict=True))


def _item(kind: Any) -> Any:
    """What a column of lists holds, whatever a release of `datasets` calls it; None: no lists."""
    return getattr(kind, "feature", None)


def _is_image(kind: Any) -> bool:
    """A column of pictures, declared as such or not: bytes, or bytes with a path; or of lists."""
    import datasets

    kind = _item(kind) or kind
    if isinstance(kind, dict):
        return set(kind) >= {"bytes", "path"}
    binary = isinstance(kind, datasets.Value) and kind.dtype in ("binary", "large_binary")
    return binary or isinstance(kind, datasets.Image)


class TextRows(list[dict[str, Any]]):
    """Rows in memory, of a table that is no more than text.

    Args:
        rows: the rows.
        files: where they come from, as `datasets` names it.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], files: Iterable[str] = ()) -> None:
        super().__init__(rows)
        self.files = list(files)

    @property
    def columns(self) -> list[str]:
        """The columns that at least one row has."""
        return list(dict.fromkeys(name for row in self for name in row))


Rows = TableRows | TextRows


# ---- what `datasets` finds -----------------------------------------------------------------------


def open_rows(path: str | Path, split: str, *, hub: bool, **options: Any) -> Rows:
    """The rows of a split on this machine or, with ``hub``, of the Hub.

    Raises:
        UserError: see :func:`open_local`.
    """
    given = {key: str(value) for key, value in options.items() if value is not None}
    return (open_split if hub else open_local)(str(path), split, **given)


def open_file(path: Path, split: str, **options: Any) -> Iterable[dict[str, Any]]:
    """The rows of one file on this machine, which is one split: ``train``, or the file's own name.

    Of a json, jsonl, csv or tsv they are read as they are asked for, where all are wanted.

    Args:
        path: the file.
        split: also a part such as ``train[:90%]``.
        options: see :func:`open_local`.

    Raises:
        UserError: another split, or it cannot be read.
    """
    if path.suffix.lower() not in TABLE_SUFFIXES:
        return open_rows(path, split, hub=False, **options)  # takes its one split by any name
    for name in _split_names(split):
        if name not in ("train", path.stem):
            raise UserError(
                f"split: {split!r} names {name!r}, but {path} is one file and has only 'train'; "
                "write train, or a part of it such as train[:90%]"
            )
    rows = (row for _, row in read_table(path))
    if split in ("train", path.stem):
        return rows
    with readable(f"split {split!r} of {path}", "write a part such as train[:90%]"):
        files = {name: [str(path)] for name in ("train", path.stem)}
        return _part(files, split, lambda _: list(rows))


def root_of(path: str | Path, hub: bool, images: str | Path | None) -> Path | None:
    """Where relative paths of pictures start; None: the files of the Hub are not here."""
    local = Path(path).expanduser()
    if images is not None:
        return Path(images).expanduser()
    if hub or local.is_dir():
        return None if hub else local
    folders = {Path(file).parent for file in glob.glob(str(local), recursive=True)}
    return folders.pop() if len(folders) == 1 else local.parent


def open_local(path: str | Path, split: str, **options: Any) -> Rows:
    """The rows of a split in a file, a glob of files, a folder, or what ``save_to_disk`` wrote.

    Args:
        path: of this machine; never an id on the Hub.
        split: also such as ``train[:1000]`` or ``train+test``.
        options: of ``datasets.load_dataset``: ``name``, ``cache_dir``.

    Raises:
        UserError: nothing is there, no such split, or it cannot be read.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        if is_saved(local):
            return open_saved(local, split)
        if any(local.glob("*.tar")):
            raise UserError(f"{local} holds webdataset tars; read it with type: webdataset")
        return open_split(str(local), split, **options)
    files = [str(local)] if local.is_file() else sorted(glob.glob(str(local), recursive=True))
    if not files:
        raise UserError(
            f"path: {path} does not exist here; check the spelling, or add hub: true if it is a "
            "data set of the Hugging Face Hub that may be downloaded"
        )
    suffixes = {Path(file).suffix.lower() for file in files}
    kinds = ", ".join(sorted(suffixes))
    if len(suffixes) > 1:
        raise UserError(f"path: {path} names files of the kinds {kinds}; name those of one kind")
    builder = BUILDERS.get(kinds)
    if builder is None:
        raise UserError(
            f"path: {path} is of kind {kinds!r}; use one of {', '.join(BUILDERS)}, or shards "
            "(.tar) with type: webdataset"
        )
    return open_split(builder, split, data_files={split.split("[")[0]: files}, **options)


def open_split(
    path: str, split: str, *, advice: str = "check path, name and split", **options: Any
) -> Rows:
    """What ``datasets.load_dataset`` finds, but the text is what the files say.

    Raises:
        UserError: it cannot be read; the message ends with ``advice``.
    """
    import datasets

    files = options.get("data_files")
    what = path if files is None else next(iter(files.values()))[0]
    config = f" (config {options['name']})" if "name" in options else ""
    with readable(f"split {split!r} of {what}{config}", advice):
        # That csv is csv is known before pandas sees it.
        builder = datasets.load_dataset_builder(path, **options)
        found: Mapping[str, Iterable[str]] = getattr(builder.config, "data_files", None) or {}
        if builder.name == "imagefolder" and any(map(_metadata, found.values())):
            return _part(found, split, _described)
        if builder.name != "csv":
            table = datasets.load_dataset(path, split=split, **options)
            kinds = [str(field.type) for field in table.data.schema]
            other = any(name in kind for kind in kinds for name in _NOT_AS_WRITTEN)
            if builder.name != "json" or not other:
                return TableRows(table, own_files=builder.name == "imagefolder")
        return _part(found, split, lambda paths: _text_rows(paths, f".{builder.name}"))


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def open_saved(folder: Path, split: str) -> TableRows:
    """What ``save_to_disk`` wrote: a dictionary of splits, or one data set of any split's name.

    Raises:
        UserError: it cannot be read, or has no such split.
    """
    import datasets

    with readable(str(folder), "was it copied whole?"):
        saved = datasets.load_from_disk(str(folder))
    named = _split_names(split)
    splits = saved if isinstance(saved, Mapping) else {named[0]: saved}
    if split in splits:
        return TableRows(splits[split])
    for name in named:
        if name not in splits:
            raise UserError(f"{folder} has no split {name!r}; it has {', '.join(splits)}")
    with readable(f"split {split!r} of {folder}", "write a part such as train[:90%]"):
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(
            {name: len(splits[name]) for name in named}
        )
    return TableRows(
        datasets.concatenate_datasets(
            [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
        )
    )


@contextmanager
def readable(what: str, advice: str) -> Iterator[None]:
    """The failures of `datasets` within, in one line.

    Raises:
        UserError: something cannot be read; the message ends with ``advice``.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets.exceptions import DatasetsError

    expected = (DatasetsError, pa.ArrowException, OSError, ValueError, TypeError, KeyError)
    try:
        yield
    except UserError:
        raise
    except (*expected, RuntimeError) as error:
        said = (str(error).splitlines() or [""])[0]
        cause = error.__cause__
        said += f"; {str(cause).splitlines()[0]}" if cause is not None and str(cause) else ""
        raise UserError(
            f"`datasets` cannot read {what} ({type(error).__name__}: {said}); {advice}"
        ) from error


# ---- what `datasets` finds and does not read -----------------------------------------------------


def _split_names(split: str) -> list[str]:
    """The splits of which ``train[:1000]+test`` takes rows."""
    return [part.split("[")[0].strip() for part in split.split("+")]


def _part(
    files: Mapping[str, Iterable[str]],
    split: str,
    read: Callable[[Iterable[str]], list[dict[str, Any]]],
) -> Rows:
    """The rows that a split such as ``train[:1000]`` or ``train+test`` names."""
    import datasets

    named = _split_names(split)
    for name in named:
        if name not in files:
            raise UserError(f"no split {name!r}; it has {', '.join(map(str, files))}")
    rows = {name: read(files[name]) for name in dict.fromkeys(named)}
    parts = datasets.ReadInstruction.from_spec(split).to_absolute(
        {name: len(found) for name, found in rows.items()}
    )
    return TextRows(
        (row for part in parts for row in rows[part.splitname][part.from_ : part.to]),
        itertools.chain.from_iterable(files.values()),
    )


def _text_rows(files: Iterable[str], kind: str) -> list[dict[str, Any]]:
    """Rows of csv or json files; those of the Hub are downloaded, and lose their names by it."""
    import datasets

    names = list(files)
    found = datasets.DownloadManager().download_and_extract(names)
    rows: list[dict[str, Any]] = []
    for name, file in zip(names, found, strict=True):
        endings = [end for end in Path(name.lower()).suffixes if end in TABLE_SUFFIXES]
        rows += [row for _, row in read_table(Path(file), kind=(endings or [kind])[-1])]
    return rows


def _metadata(files: Iterable[str]) -> list[Path]:
    """The metadata files among those of an image folder on this machine."""
    here = (Path(file) for file in files if "://" not in file)
    return [file for file in here if file.name in METADATA]


def _described(files: Iterable[str]) -> list[dict[str, Any]]:
    """The pictures that metadata files describe, by path, with the other columns."""
    rows: list[dict[str, Any]] = []
    for metadata in _metadata(files):
        for place, row in read_table(metadata):
            name = row.pop("file_name", None)
            if not isinstance(name, str) or not name.strip():
                raise UserError(f"{place}: file_name is {name!r:.60}, but must name a picture")
            rows.append({"image": metadata.parent / name.strip(), **row})
    return rows
