"""Several datasets as one, in exact proportions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unigame.data.images import CorruptImage
from unigame.data.peek import peek_texts
from unigame.data.records import Record, RecordSource, SkippedRow, load_rows
from unigame.data.shards import Source, sources_of
from unigame.data.skips import SkipReport
from unigame.errors import UserError


class Mixture(Dataset[Record]):
    """A weighted mixture: map-style, so any sampler shuffles it and a resumed run sees the same.

    Source i fills ``shares[i]`` of the ``size`` places of an epoch: ``size`` times its share of the
    weights, rounded by largest remainder, so that the shares add up to ``size``. It fills them from
    an endless stream of its own rows, one shuffled pass after the other, and the next epoch goes on
    in that stream where the last one stopped (:meth:`set_epoch`): no row comes a second time before
    all rows of its source have come once, over epochs too. Everything is a pure function of
    (seed, epoch, index).

    Args:
        datasets: The sources.
        weights: Above 0, need not sum to 1; by default the sources' lengths, which makes the
            mixture their shuffled concatenation.
        seed: Of the order.
        size: Places of an epoch; by default the sum of the lengths.

    Raises:
        UserError: Impossible weights or size, an empty source, or a source so light that it
            would get no place at all.
    """

    texts_by_index = False
    """:meth:`iter_texts` goes source by source; what stands at an index depends on the epoch."""

    def __init__(
        self,
        datasets: Sequence[RecordSource],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        size: int | None = None,
    ) -> None:
        self.datasets = list(datasets)
        self._lengths = [len(dataset) for dataset in self.datasets]
        if not self.datasets or min(self._lengths) == 0:
            raise UserError(f"a mixture needs sources with rows, got lengths {self._lengths}")
        self.weights = checked_weights(self._lengths if weights is None else weights, self._lengths)
        size = sum(self._lengths) if size is None else size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(f"size must be a whole number of rows above 0, got {size!r}")
        self.seed = seed
        self.shares = _shares(self.weights, size)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the rows of this epoch; transformers' Trainer calls it through the data loader."""
        self.epoch = epoch
        # Kept for each place of an epoch, so in the smallest numbers that reach far enough.
        source = torch.repeat_interleave(
            torch.arange(len(self.shares), dtype=_narrow(len(self.shares))),
            torch.tensor(self.shares, dtype=torch.long),
        )
        narrow = _narrow(max(self._lengths))
        draws = (
            self._draws(number, epoch * share, share).to(narrow)
            for number, share in enumerate(self.shares)
        )
        row = torch.cat(list(draws))
        order = _permutation(len(source), self.seed, -1, epoch)
        self._source, self._row = source[order], row[order]

    def _draws(self, number: int, first: int, count: int) -> Tensor:
        """Draws ``first`` to ``first + count`` of the endless stream of one source's rows."""
        length = self._lengths[number]
        passes = range(first // length, (first + count - 1) // length + 1)
        stream = torch.cat([_permutation(length, self.seed, number, turn) for turn in passes])
        begin = first - passes.start * length
        return stream[begin : begin + count]

    def __len__(self) -> int:
        return len(self._source)

    def locate(self, index: int) -> tuple[int, int]:
        """Which source, and which row of it, stands at ``index`` in this epoch."""
        return int(self._source[index]), int(self._row[index])

    def __getitem__(self, index: int) -> Record:
        """One record; its id gets the number of its source in front, as ``"0:4711"``.

        Raises:
            CorruptImage: Its picture is gone or damaged.
            IndexError: ``index`` is out of range.
        """
        source, row = self.locate(index)
        try:
            record: Record = self.datasets[source][row]
        except CorruptImage as error:
            id = f"{source}:{error.id or row}"
            raise CorruptImage(id, error.reason, error.detail) from error
        return {**record, "id": f"{source}:{record['id']}"}

    def __getitems__(self, indices: Sequence[int]) -> list[Record | SkippedRow]:
        """The rows of a batch, a :class:`SkippedRow` for every damaged one; torch calls this."""
        return load_rows(self, indices)

    def sources(self) -> list[Source]:
        """The places of each source in this epoch, and the shards of their rows."""
        found = []
        for number, dataset in enumerate(self.datasets):
            places = (self._source == number).nonzero().flatten()
            parts = sources_of(dataset)
            # A mixture of mixtures has no rows of its own that lie side by side.
            shards = parts[0].shards_N if len(parts) == 1 else torch.full((len(dataset),), -1)
            found.append(Source(places, shards[self._row[places].long()]))
        return found

    def iter_texts(self) -> Iterator[Any]:
        """The texts of every row of every source, with the id that it has here; no picture is read.

        Sources that cannot say their texts without their pictures are left out.
        """
        for number, source in enumerate(self.datasets):
            for row in peek_texts(source) or ():
                known = isinstance(row, Mapping)
                yield {**row, "id": f"{number}:{row.get('id')}"} if known else row

    @property
    def skips(self) -> SkipReport:
        """The reports of all sources that have one, as one; ``kept`` counts rows of the sources."""
        reports = (
            (f"{i}:", getattr(source, "skips", None)) for i, source in enumerate(self.datasets)
        )
        return SkipReport.merged(
            (prefix, report) for prefix, report in reports if report is not None
        )


def checked_weights(weights: Sequence[float], lengths: Sequence[Any]) -> list[float]:
    """The weights as numbers.

    Raises:
        UserError: one is not above 0 and finite, or they are not as many as the sources.
    """
    if len(weights) != len(lengths):
        raise UserError(f"{len(weights)} weights for {len(lengths)} sources; give one for each")
    for weight in weights:
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or weight <= 0:
            raise UserError(
                f"weight {weight!r} is not a number above 0; drop sources you don't want"
            )
    return [float(weight) for weight in weights]


def _shares(weights: Sequence[float], size: int) -> list[int]:
    """``size`` split by weight: rounded down, the rest to the largest remainders."""
    exact = [size * weight / math.fsum(weights) for weight in weights]
    shares = [math.floor(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: size - sum(shares)]:
        shares[i] += 1
    if 0 in shares:
        light = shares.index(0)
        raise UserError(
            f"source {light} gets no row: weight {weights[light]:g} of {math.fsum(weights):g} in a "
            f"mixture of {size} rows; raise its weight or the size, or drop it"
        )
    return shares


def _narrow(count: int) -> torch.dtype:
    """The smallest whole numbers that count to ``count``."""
    kinds = (torch.int16, torch.int32, torch.int64)
    return next(kind for kind in kinds if count - 1 <= torch.iinfo(kind).max)


def _permutation(length: int, seed: int, stream: int, turn: int) -> Tensor:
    """A shuffled ``arange(length)`` that depends on nothing but the arguments."""
    # SeedSequence keeps neighbouring seeds independent, and is the same everywhere.
    words = np.random.SeedSequence([abs(seed), stream + 1, turn]).generate_state(2)
    generator = torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))
    return torch.randperm(length, generator=generator)
