"""Rows that stay in their table on disk: of each only its number is kept.

A row takes some 370 bytes of Python objects, in every process; its number takes 4. `datasets` maps
tables from the disk, so the pages that are read are shared by all processes of a machine. What was
checked when the table was opened is made again, the same, when a row is asked for.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from unigame.data.dataset import Row
from unigame.data.records import SkippedRow
from unigame.data.rows import TableRows


class StoredRows(Sequence[Row]):
    """The good rows of a table.

    Args:
        table: on disk.
        make: from a row's number and cells to the row; it can be pickled.
    """

    def __init__(
        self, table: TableRows, make: Callable[[int, Mapping[str, Any]], Row | SkippedRow]
    ) -> None:
        self.table, self.make = table, make
        self._numbers = array("I")
        self._ids: dict[int, str] = {}  # of rows whose own id another one has
        self._last: tuple[int, str] = (0, "")

    def all(self) -> Iterator[Row | SkippedRow]:
        """Every row of the table in order, good or not; ``append`` keeps the one that was last."""
        for number, cells in enumerate(self.table):
            row = self.make(number, cells)
            self._last = number, row.id
            yield row

    def append(self, row: Row) -> None:
        """Keep the row that ``all`` gave last, whose id may have been changed since."""
        number, id = self._last
        self._numbers.append(number)
        if row.id != id:
            self._ids[number] = row.id

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        number = self._numbers[index]
        return self._row(number, self.table[number])

    def __iter__(self) -> Iterator[Row]:
        good = iter(self._numbers)
        wanted = next(good, None)
        for number, cells in enumerate(self.table):
            if wanted is None:
                return
            if number == wanted:
                yield self._row(number, cells)
                wanted = next(good, None)

    def _row(self, number: int, cells: Mapping[str, Any]) -> Row:
        row = self.make(number, cells)
        assert isinstance(row, Row), f"row {number} was good when the table was opened"
        if number in self._ids:
            row.id = self._ids[number]
        return row
