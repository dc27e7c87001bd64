"""An order in which each process reads shards of its own, a few at a time.

The rows of each source, in the order of its shards, are cut into as many equal pieces as there are
processes. So a process opens its own shards (where a cut falls within one, two processes do), the
same ones in every epoch (about the same, where a mixture takes a part of a source), and yet every
row comes once an epoch and all processes have equally many. Within its piece a process takes
``AT_ONCE`` shards in random order and shuffles their rows; sources are mixed as they are mixed in
the whole. Only the last step of an epoch, which is not full, takes what is left.

Everything is a pure function of (seed, epoch, processes, batch), so a resumed run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

from unigame.data.shards import Source, sources_of

AT_ONCE = 4
"""Shards whose rows are shuffled together."""


class ShardOrder(Sampler[int]):
    """The indices of an epoch, such that batch i of the whole is process ``i % processes``'s.

    That is how accelerate deals batches out.

    Args:
        dataset: a reader of ours or a mixture of them; rows of others have no shards.
        processes: that read.
        batch: rows of a micro-batch.
        seed: of the order.
    """

    def __init__(self, dataset: Any, processes: int, batch: int, seed: int) -> None:
        self.dataset, self.processes, self.batch, self.seed = dataset, processes, batch, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; the data set hears of the epoch by itself."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        sources = sources_of(self.dataset)
        orders = [self._of_process(sources, rank) for rank in range(self.processes)]
        full = min(map(len, orders)) // self.batch * self.batch
        rounds = [order[:full].view(full // self.batch, self.batch) for order in orders]
        rest = [order[full:] for order in orders]
        return iter(torch.cat([torch.stack(rounds, dim=1).flatten(), *rest]).tolist())

    def _of_process(self, sources: list[Source], rank: int) -> Tensor:
        """The rows that one process reads, in order."""
        words = np.random.SeedSequence([abs(self.seed), self.epoch, rank]).generate_state(2)
        generator = Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))
        streams = [self._stream(source, rank, generator) for source in sources]
        whose = torch.repeat_interleave(
            torch.arange(len(streams)), torch.tensor([len(stream) for stream in streams])
        )
        whose = whose[torch.randperm(len(whose), generator=generator)]
        order = torch.empty(len(whose), dtype=torch.long)
        for number, stream in enumerate(streams):
            order[whose == number] = stream
        return order

    def _stream(self, source: Source, rank: int, generator: Generator) -> Tensor:
        """The rows of one source that one process reads, in order."""
        places, shards = source.places_N.long(), source.shards_N
        if source.number:
            by_shard = torch.argsort(shards, stable=True)
        else:  # the same shuffling on all processes, so that each row is one process's
            words = np.random.SeedSequence([abs(self.seed), self.epoch]).generate_state(1)
            by_shard = torch.randperm(len(places), generator=Generator().manual_seed(int(words[0])))
        mine = slice(*(len(places) * r // self.processes for r in (rank, rank + 1)))
        places, shards = places[by_shard][mine], shards[by_shard][mine]
        if not source.number or not len(places):
            return places
        used, which = torch.unique_consecutive(shards, return_inverse=True)
        group = torch.randperm(len(used), generator=generator)[which] // AT_ONCE
        noise = torch.randperm(len(places), generator=generator)
        return places[torch.argsort(group * len(places) + noise)]

    def faults(self) -> list[str]:
        """Where processes cannot have shards of their own, a line each."""
        numbers = [source.number for source in sources_of(self.dataset)]
        if not any(numbers):
            return ["no source is made of tars or tables: its rows are shuffled as a whole"]
        return [
            f"source {name} has {number} shards for {self.processes} processes, so several read "
            "parts of the same one; write more and smaller shards"
            for name, number in enumerate(numbers)
            if 0 < number < self.processes
        ]
