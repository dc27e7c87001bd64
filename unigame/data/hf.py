"""Hugging Face datasets: local files and folders, and data sets of the Hub on explicit request."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unigame.data.hf_text import load_split
from unigame.data.images import MISSING, CorruptImage, read_file
from unigame.data.reader import NO_TEXT, Reader, Row, check_options, texts_of
from unigame.data.records import SkippedRow
from unigame.data.tables import resolve_columns
from unigame.errors import UserError

BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
}
_TEXT_FIELDS = ("question", "answer", "answers", "caption", "id")


class HFData(Reader):
    """A data set that the ``datasets`` library reads, with questions or captions.

    Rows without text (a question with its answer, or a caption) are counted and left out.

    Args:
        path: A parquet, arrow, json, jsonl or csv file, a glob of such files, a folder of them, an
            image folder with metadata, a folder written by ``save_to_disk``, or, with ``hub``, the
            id of a data set on the Hub.
        hub: Whether ``path`` is a Hub id, which may be downloaded. Never assumed.
        name: Configuration of a data set that has several.
        split: The split; slices such as ``train[:1000]`` work where ``datasets`` knows them.
        revision: Branch, tag or commit on the Hub.
        columns: Field to column, where the columns have unusual names.
        images: Where relative image paths start, if the image column holds paths; by default the
            folder of the file.
        require_answers: Whether a question needs an answer to be kept.
        cache_dir: Where ``datasets`` keeps its arrow copy; by default its own cache. A csv has
            none: it is read as all tables here are, so that its text stays text.
        verify: See :class:`Reader`.
        limit: See :class:`Reader`.

    Raises:
        UserError: No such data set, split or column, wrong types, nothing is left.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        hub: bool = False,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        columns: Mapping[str, str] | None = None,
        images: str | Path | None = None,
        require_answers: bool = True,
        cache_dir: str | Path | None = None,
        verify: str = "exists",
        limit: int | None = None,
    ) -> None:
        check_options(verify=verify, limit=limit)
        options = {"name": name, "revision": revision, "cache_dir": cache_dir}
        table = _load(path, split, hub, {k: str(v) for k, v in options.items() if v is not None})
        where = f"{path} ({split})"
        # With an answer mandatory, a column of answers is needed; otherwise a question will do.
        asked = "answer" if require_answers else "question"
        fields = resolve_columns(
            table.column_names,
            columns,
            required=("image", ("caption", asked, "answers")),
            where=where,
        )
        self._root = Path(images).expanduser() if images else _folder_of(path)
        self._image = fields["image"]
        self._pictures = _undecoded(table, self._image, where)
        texts = {field: fields[field] for field in _TEXT_FIELDS if field in fields}
        rows = _rows(table, texts, where, require_answers)
        try:
            self._absent = (
                _absent(self._pictures, self._image, self._root) if verify != "none" else set()
            )
            super().__init__(rows, where=where, verify=verify, limit=limit)
        except UnicodeDecodeError as error:  # Arrow takes any bytes for text until they are read
            raise UserError(
                f"{where} holds text that is not UTF-8 ({error}); write the data set again"
            ) from None

    def check_image(self, row: Row) -> None:
        """Raise :class:`CorruptImage` for an empty image cell or a path without a file."""
        if row.image in self._absent:
            raise CorruptImage(row.id, MISSING, "empty image cell, or no such file")

    def read_image(self, row: Row) -> bytes:
        """The encoded picture, from the cell itself or from the file that it names."""
        cell = self._pictures[row.image][self._image]
        data, path = _bytes_and_path(cell)
        if data is not None:
            return data
        if path is None:
            raise CorruptImage(row.id, MISSING, "empty image cell")
        return read_file(self._root / path)


def _rows(
    table: Any, fields: dict[str, str], where: str, require_answers: bool
) -> Iterator[Row | SkippedRow]:
    texts_only = table.select_columns(list(dict.fromkeys(fields.values())))
    for number, cells in enumerate(_cells(texts_only)):
        place = f"{where} row {number}"
        given = cells.get(fields.get("id", ""))
        id = str(number if given is None else given)
        texts = texts_of(cells, fields, place)
        if texts["question"] is None or (texts["answer"] is None and require_answers):
            texts |= {"question": None, "answer": None, "answers": ()}  # half a question is none
        if texts["question"] is None and texts["caption"] is None:
            yield SkippedRow(id, NO_TEXT, place)
        else:
            yield Row(id=id, image=number, **texts)


def _cells(table: Any) -> Iterator[dict[str, Any]]:
    """Row after row; by batches, which is many times faster than one by one."""
    for batch in table.iter(batch_size=1_000):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _load(path: str | Path, split: str, hub: bool, options: dict[str, str]) -> Any:
    """A ``datasets.Dataset``.

    Raises:
        UserError: It cannot be had, with what ``datasets`` said.
    """
    # Takes a second; only who reads HF data pays it.
    from datasets.exceptions import DatasetsError

    try:
        if hub:
            return load_split(str(path), split, **options)
        return _load_local(path, split, options)
    except UserError:
        raise
    except (DatasetsError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        said = (str(error).splitlines() or [""])[0]
        cause = error.__cause__
        said += f"; {str(cause).splitlines()[0]}" if cause is not None and str(cause) else ""
        raise UserError(
            f"{path}: `datasets` cannot read split {split!r} ({type(error).__name__}: {said}); "
            "check path, name and split"
        ) from error


def _load_local(path: str | Path, split: str, options: dict[str, str]) -> Any:
    local = Path(path).expanduser()
    if local.is_dir():
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            return _saved(local, split)
        if any(local.glob("*.tar")):
            raise UserError(f"{local} holds webdataset tars; read it with type: webdataset")
        return load_split(str(local), split, **options)
    files = [str(local)] if local.is_file() else sorted(glob.glob(str(local), recursive=True))
    if not files:
        raise UserError(
            f"path: {path} does not exist here; check the spelling, or add hub: true if it is a "
            "data set of the Hugging Face Hub that may be downloaded"
        )
    suffixes = {Path(file).suffix.lower() for file in files}
    builder = BUILDERS.get(next(iter(suffixes)))
    if len(suffixes) > 1 or builder is None:
        kinds = ", ".join(sorted(suffixes))
        raise UserError(f"path: {path} is of kind {kinds!r}; use one of {', '.join(BUILDERS)}")
    base = split.split("[")[0]
    return load_split(builder, split, data_files={base: files}, **options)


def _saved(folder: Path, split: str) -> Any:
    """What ``save_to_disk`` wrote: one data set, or a dictionary of splits."""
    import datasets

    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, Mapping):
        return saved
    if split not in saved:
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(saved)}")
    return saved[split]


def _folder_of(path: str | Path) -> Path:
    local = Path(path).expanduser()
    return local if local.is_dir() else local.parent


def _undecoded(table: Any, image: str, where: str) -> Any:
    """The image column alone, its cells left as bytes or paths: decoding is ours.

    Raises:
        UserError: The column holds no images.
    """
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]

    column = table.select_columns([image])
    if isinstance(column.features[image], datasets.Image):
        column = column.cast_column(image, datasets.Image(decode=False))
    kind = column.data.schema.field(image).type
    is_struct = pa.types.is_struct(kind) and {"bytes", "path"} <= {f.name for f in kind}
    if not (is_struct or _is_text(kind) or _is_binary(kind)):
        raise UserError(
            f"{where}: column {image!r} holds {kind}, but one image, its bytes or its path is "
            "needed; name the right column with columns: {image: <column>}"
        )
    return column


def _absent(pictures: Any, image: str, root: Path) -> set[int]:
    """Rows with an empty image cell, or a path to no file, without reading any picture."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    absent: set[int] = set()
    start = 0
    for batch in pictures.with_format("arrow").iter(batch_size=1_000):
        cells = batch.column(image).combine_chunks()
        paths = cells
        embedded = pa.array([False] * len(cells))
        if pa.types.is_struct(cells.type):
            paths = pc.struct_field(cells, "path")
            embedded = pc.is_valid(pc.struct_field(cells, "bytes"))
        elif _is_binary(cells.type):
            paths, embedded = pa.nulls(len(cells), pa.string()), pc.is_valid(cells)
        present = pc.and_(embedded, pc.is_valid(cells)).to_pylist()
        for offset, (here, path) in enumerate(zip(present, paths.to_pylist(), strict=True)):
            if not here and (path is None or not os.path.isfile(root / path)):
                absent.add(start + offset)
        start += len(cells)
    return absent


def _bytes_and_path(cell: Any) -> tuple[bytes | None, str | None]:
    if isinstance(cell, Mapping):
        return cell["bytes"], cell["path"]
    if isinstance(cell, bytes):
        return cell, None
    return None, cell


def _is_text(kind: Any) -> bool:
    import pyarrow as pa  # type: ignore[import-untyped]

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa  # type: ignore[import-untyped]

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
