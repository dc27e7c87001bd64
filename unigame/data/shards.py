"""Which shard of its source a row lies in: a tar, or a block of a table.

Rows of one shard lie side by side on the disk, so who reads few shards at a time opens few files
and reads ahead in them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unigame.data.pictures import TableCell, TarSlice

BLOCK = 1_000
"""Rows of a table that count as one shard: what `datasets` writes at once."""
NONE = -1


class Source(NamedTuple):
    """Rows of one source, by their places in the data set, and the shard of each.

    Attributes:
        places_N: indices into the data set.
        shards_N: numbers from 0 in the order of the files; all -1 where a source has no shards.
    """

    places_N: Tensor
    shards_N: Tensor

    @property
    def number(self) -> int:
        """How many shards there are."""
        return int(self.shards_N.unique().numel()) if (self.shards_N >= 0).all() else 0


def numbered(cells: Iterable[Any]) -> Tensor:
    """The shard of each picture, (N,), numbered as they come; -1 for one that lies in none."""
    known: dict[Hashable, int] = {}
    numbers = []
    for cell in cells:
        shard = _shard_of(cell)
        numbers.append(NONE if shard is None else known.setdefault(shard, len(known)))
    return torch.tensor(numbers, dtype=torch.int32)


def _shard_of(cell: Any) -> Hashable | None:
    if isinstance(cell, TarSlice):
        return cell.shard
    if isinstance(cell, TableCell):
        return id(cell.table), cell.number // BLOCK
    return None


def sources_of(dataset: Any) -> list[Source]:
    """The sources of a data set in this epoch; one without shards, of any other data set."""
    if hasattr(dataset, "sources"):
        return list(dataset.sources())
    return [Source(torch.arange(len(dataset)), torch.full((len(dataset),), NONE))]
