"""One evaluation on several processes: each asks a share of the items and writes a file of its own.

    predictions.jsonl          what rank 0 asked, and what it merged from the others
    predictions.rank<K>.jsonl  what rank K asked, until it is merged

Ranks never wait for each other and send each other nothing: each reads the others' files. Who is
through with its share asks what is left of the others' shares, from their ends. So a slow rank is
helped, a dead one is replaced, and it loses no more than the batch that it was asking. That two
ranks may ask the same item costs time and nothing else: replies are greedy, and each drawing has a
seed of its own. Rank 0 goes on when every item has a prediction, merges the files, and scores.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigame.errors import UserError
from unigame.evaluation.base import Item
from unigame.evaluation.batching import BatchSize, in_batches, in_order
from unigame.evaluation.store import JsonlStore, RowsById

PREDICTIONS = "predictions.jsonl"
PREDICTIONS_OF_ALL = "predictions*.jsonl"
BATCHES_AT_ONCE = 4
"""Batches of its own share that a rank asks before it looks at what the others have done."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is.

    Attributes:
        rank: from 0; the first merges and scores.
        count: how many there are.
        local: its number on this machine, which says which GPU is its own.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether it is the one that merges and scores."""
        return self.rank == 0

    def device(self) -> str | None:
        """The GPU of this process, of several; None: what a single process would take."""
        import torch

        if self.count == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{self.local % torch.cuda.device_count()}"


def launched_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """What torchrun and its like say: ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``.

    Raises:
        UserError: several processes, and nothing says which of them this one is.
    """
    count = _whole("WORLD_SIZE", environment, 1)
    if count <= 1:
        return Ranks()
    if "RANK" not in environment:
        raise UserError(
            f"WORLD_SIZE={count} without RANK: start the processes with torchrun or --processes, "
            "or unset WORLD_SIZE"
        )
    rank = _whole("RANK", environment, 0)
    if rank >= count:
        raise UserError(f"RANK={rank} with WORLD_SIZE={count}: ranks count from 0")
    return Ranks(rank, count, _whole("LOCAL_RANK", environment, rank))


def _whole(name: str, environment: Mapping[str, str], default: int) -> int:
    text = environment.get(name, str(default))
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"{name}={text!r} is no whole number; unset it, or use torchrun")
    return int(text)


class RankStore(RowsById):
    """The predictions of all ranks by id, of which this one appends to a file of its own.

    Args:
        folder: of one benchmark.
        ranks: which process this is.

    Raises:
        UserError: a file there does not hold predictions.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder = folder
        name = PREDICTIONS if ranks.first else f"predictions.rank{ranks.rank}.jsonl"
        self._own = JsonlStore(folder / name)
        self._rows = dict(self._own)
        self._read: dict[Path, int] = {}
        self.refresh()

    def refresh(self) -> list[str]:
        """Read what other ranks have written since, and return the ids of what is new.

        Raises:
            UserError: a line of theirs is damaged.
        """
        new = []
        for path in self._others():
            for row in self._new_rows(path):
                before = self._rows.get(row["id"])
                # Equal, but for the last bits of a sum, if two ranks asked the same.
                if before is None or before["error"] or before["asked"] != row["asked"]:
                    self._rows[row["id"]] = row
                    new.append(row["id"])
        return new

    def _others(self) -> list[Path]:
        return sorted(set(self.folder.glob(PREDICTIONS_OF_ALL)) - {self._own.path})

    def _new_rows(self, path: Path) -> Iterator[dict[str, Any]]:
        """Whole lines only: its writer may be in the middle of one, or have died there."""
        try:
            with path.open("rb") as file:
                start = self._read.get(path, 0)
                if os.fstat(file.fileno()).st_size < start:  # merged, and begun anew
                    start = 0
                file.seek(start)
                lines = file.read()
        except FileNotFoundError:  # merged since
            return
        lines = lines[: lines.rfind(b"\n") + 1]
        self._read[path] = start + len(lines)
        for line in lines.splitlines():
            try:
                row = json.loads(line)
                row["id"], row["error"], row["asked"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(
                    f"{path} has a damaged line ({line[:40]!r}); delete the file to ask again what "
                    "it holds, or mend the line"
                ) from None
            yield row

    def merge(self) -> None:
        """Take the rows of all ranks into this one's file, and delete theirs: for rank 0."""
        self.refresh()
        others = self._others()
        self._own.append(*(row for id, row in self._rows.items() if self._own.get(id) != row))
        for path in others:
            path.unlink(missing_ok=True)

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Write rows and hand them to the operating system before returning."""
        self._own.append(*rows)
        self._rows.update({row["id"]: dict(row) for row in rows})


def parts(
    items: Sequence[Item],
    ranks: Ranks,
    batch: int,
    *,
    settled: Callable[[Item], bool],
    refresh: Callable[[], object],
) -> Iterator[list[Item]]:
    """What this rank asks, part by part: its own share, then what is left of the others'.

    Every rank must be given the same items; what is settled may differ between them.

    Args:
        items: all of the benchmark.
        ranks: which process this is.
        batch: about how many items are asked at once; the same on all ranks.
        settled: whether an item has a prediction; it is not asked about again once it has.
        refresh: called before each part, to learn what the others have done.
    """
    done: set[str] = set()

    def left(of: Sequence[Item]) -> list[Item]:
        done.update(item.id for item in of if item.id not in done and settled(item))
        return [item for item in of if item.id not in done]

    at_once = min(BATCHES_AT_ONCE * batch, math.ceil(len(items) / ranks.count))
    blocks = list(in_batches(in_order(items), BatchSize(max(1, at_once))))
    for block in blocks[ranks.rank :: ranks.count]:
        refresh()
        if own := left(block):
            yield own
            done.update(item.id for item in own)
    while True:
        refresh()
        for step in range(ranks.count):  # from 0: a drawing of its own may be lost again
            share = (ranks.rank + step) % ranks.count
            if rest := left([item for block in blocks[share :: ranks.count] for item in block]):
                break
        else:
            return
        batches = list(in_batches(rest, BatchSize(batch)))
        # The owner comes from the front; helpers take different batches from the end.
        chosen = batches[-1 - (step - 1) % len(batches)]
        yield chosen
        done.update(item.id for item in chosen)  # never twice, whatever came of it
