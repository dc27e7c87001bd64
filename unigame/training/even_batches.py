"""Rows of an evaluation in equally many batches for every process, and no row twice.

accelerate fills up the last batches with rows from the beginning. A mean over all rows then counts
those twice. Here a last batch is shorter, as on one process, and a process that has none left gets
a stand-in: all processes run equally many passes, which sharded weights and every sum over
processes need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from unigame.data.records import RecordSource
from unigame.methods.rows import STAND_IN, Batch

NO_ROW = "\0stand-in"
"""Id of a row that is in no dataset."""


class EvenBatches(Dataset[Any]):
    """Rows in order, and behind them places of no row, until all processes have equally many.

    Places of no row are left out of a batch that has others.

    Args:
        rows: of the evaluation.
        batch: rows of a process at a time.
        processes: how many there are.
    """

    def __init__(self, rows: RecordSource, batch: int, processes: int) -> None:
        self.rows = rows
        self._places = math.ceil(len(rows) / (batch * processes)) * batch * processes

    def __len__(self) -> int:
        return self._places

    def __getitem__(self, index: int) -> Any:
        return self.rows[index] if index < len(self.rows) else _stand_in()

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """A batch, as the rows themselves give it; of no row, a stand-in."""
        real = [index for index in indices if index < len(self.rows)]
        if not real:
            return [_stand_in()]
        whole = getattr(self.rows, "__getitems__", None)
        return list(whole(real)) if whole else [self.rows[index] for index in real]

    def set_epoch(self, epoch: int) -> None:
        """Loaders tell a dataset that can hear it."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)


def even_batches(rows: Any, batch: int, processes: int) -> Any:
    """The rows for several processes; those of one process, and streams, are left as they are."""
    if processes == 1 or isinstance(rows, IterableDataset) or not isinstance(rows, Sized):
        return rows
    return EvenBatches(rows, batch, processes)  # type: ignore[arg-type]


def without_stand_in(batch: Batch) -> Batch:
    """The batch; one of no row has a row that no loss counts."""
    if list(batch.records.ids) != [NO_ROW]:
        return batch
    nothing_R = torch.zeros_like(batch.has_answer_R)
    return replace(batch, has_answer_R=nothing_R, has_caption_R=nothing_R)


def _stand_in() -> dict[str, Any]:
    """A record that every model can read."""
    picture = Image.new("RGB", (32, 32), "white")
    texts = dict.fromkeys(("question", "answer", "caption"), STAND_IN)
    return {"image": picture, **texts, "id": NO_ROW}
