"""A ``datasets.Dataset`` as a sequence of plain rows whose pictures stay on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, overload

from unigame.errors import UserError
from unigame.evaluation.pictures import LazyCell

_BATCH = 1_000


def open_table(load: Callable[[], Any], what: str, advice: str) -> Any:
    """What ``load`` returns, with the failures of the ``datasets`` library in one line.

    Raises:
        UserError: it cannot be read; the message ends with ``advice``.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets.exceptions import DatasetsError

    expected = (DatasetsError, pa.ArrowException, OSError, ValueError, TypeError, KeyError)
    try:
        return load()
    except (*expected, RuntimeError) as error:
        said = (str(error).splitlines() or [""])[0]
        cause = error.__cause__
        said += f"; {str(cause).splitlines()[0]}" if cause is not None and str(cause) else ""
        raise UserError(
            f"`datasets` cannot read {what} ({type(error).__name__}: {said}); {advice}"
        ) from error


class TableRows(Sequence[dict[str, Any]]):
    """Rows read by batches, image cells as :class:`LazyCell` (None where the cell is empty).

    A benchmark of 200,000 pictures is tens of gigabytes; only the text comes into memory.

    Args:
        table: a ``datasets.Dataset``.
    """

    def __init__(self, table: Any) -> None:
        import datasets

        self.columns: list[str] = list(table.column_names)
        images = [name for name, kind in table.features.items() if _is_image(kind)]
        for name in images:
            if isinstance(table.features[name], datasets.Image):
                table = table.cast_column(name, datasets.Image(decode=False))
        self._pictures = {name: table.select_columns([name]) for name in images}
        self._texts = table.remove_columns(images)
        self._length = len(table)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        number = range(self._length)[index]  # raises IndexError, takes negative numbers
        return next(self._batch(number, number + 1))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, self._length, _BATCH):
            yield from self._batch(start, min(start + _BATCH, self._length))

    def _batch(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        texts = self._text_cells(start, stop) if self._texts.column_names else {}
        here = {name: _filled(table, start, stop) for name, table in self._pictures.items()}
        for offset in range(stop - start):
            cells: dict[str, Any] = {}
            for name in self.columns:
                if name not in here:
                    cells[name] = texts[name][offset]
                elif here[name][offset]:
                    cells[name] = LazyCell(partial(_cell, self._pictures[name], start + offset))
                else:
                    cells[name] = None
            yield cells

    def _text_cells(self, start: int, stop: int) -> Any:
        try:
            return self._texts[start:stop]
        except UnicodeDecodeError as error:  # Arrow takes any bytes for text until they are read
            raise UserError(
                f"rows {start} to {stop} of column {', '.join(self._texts.column_names)} hold text "
                f"that is not UTF-8 ({error}); download the data again"
            ) from None


def _cell(table: Any, row: int) -> Any:
    return table[row][table.column_names[0]]


def _filled(table: Any, start: int, stop: int) -> list[bool]:
    """Which image cells hold something, without reading any picture."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    cells = table.with_format("arrow")[start:stop].column(0).combine_chunks()
    if isinstance(cells, pa.ChunkedArray):
        cells = pa.concat_arrays(cells.chunks)
    filled = pc.is_valid(cells)
    if pa.types.is_struct(cells.type):
        parts = [pc.is_valid(pc.struct_field(cells, part)) for part in ("bytes", "path")]
        filled = pc.and_(filled, pc.or_(*parts))
    return list(filled.to_pylist())


def _is_image(kind: Any) -> bool:
    """A column of pictures, declared as such or not: bytes, or bytes with a path."""
    import datasets

    if isinstance(kind, datasets.Image):
        return True
    if isinstance(kind, dict):
        return set(kind) == {"bytes", "path"}
    return isinstance(kind, datasets.Value) and kind.dtype in ("binary", "large_binary")
