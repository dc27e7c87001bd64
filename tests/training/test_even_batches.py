"""Rows of an evaluation, dealt out to processes by accelerate: each once, in as many batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from unigame.training.even_batches import NO_ROW, even_batches


class Whole:
    """Rows that are read a batch at a time, as the readers here do."""

    def __init__(self, size: int) -> None:
        self.size, self.epoch = size, -1
        self.read: list[list[int]] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": str(index)}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        self.read.append(list(indices))
        return [self[index] for index in indices]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def dealt(rows: Any, batch: int, processes: int) -> list[list[list[str]]]:
    """The ids of each batch of each process."""
    filled = even_batches(rows, batch, processes)
    found = []
    for rank in range(processes):
        sampler = BatchSampler(SequentialSampler(filled), batch, drop_last=False)
        shard = BatchSamplerShard(sampler, processes, rank)
        loader = DataLoader(filled, batch_sampler=shard, collate_fn=list)
        found.append([[row["id"] for row in rows] for rows in loader])
    return found


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("size", range(1, 14))
@pytest.mark.parametrize("kind", [Whole, list])
def test_every_row_is_read_once_in_as_many_batches(kind: Any, size: int, processes: int) -> None:
    rows = Whole(size) if kind is Whole else [{"id": str(number)} for number in range(size)]
    ranks = dealt(rows, 2, processes)
    assert len({len(batches) for batches in ranks}) == 1
    ids = [id for batches in ranks for batch in batches for id in batch if id != NO_ROW]
    assert sorted(ids, key=int) == [str(number) for number in range(size)]
    for batch in (batch for batches in ranks for batch in batches):
        assert batch and (NO_ROW not in batch or batch == [NO_ROW])


def test_a_dataset_is_asked_for_its_rows_as_on_one_process() -> None:
    rows = Whole(5)
    dealt(rows, 2, 2)
    assert sorted(rows.read) == [[0, 1], [2, 3], [4]]
    even_batches(rows, 2, 2).set_epoch(3)
    assert rows.epoch == 3


def test_one_process_and_streams_are_left_alone() -> None:
    rows, stream = Whole(5), iter([])
    assert even_batches(rows, 2, 1) is rows
    assert even_batches(stream, 2, 2) is stream
