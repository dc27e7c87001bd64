"""Whether steps wait for data on a slow disk: loader workers, prefetching, and shards by rank.

The disk is simulated: opening a file and reading a picture take so many milliseconds each, as on a
network file system; the step is a sleep. What one of 8 processes would read is read here, by our
reader of tars, with torch's loader, and the time that its steps wait is taken.

Usage:
    python benchmarks/reading.py --json FILE [--steps 40] [--open-ms 20] [--read-ms 5]

For each way to read: ``wait_share`` of a step's time, ``step_ratio`` (the time of a step against
that of one which never waits), and ``opened`` and ``read``: files and pictures for each row that is
trained on. The ways:

everything   every process reads all rows and keeps its own, as streams that nobody has split
reopened     its rows, from any shard, and the shard is opened for every picture
rows         the same, and the last shards stay open (``reading_order: rows``)
shards       rows of its own shards, a few at a time (``reading_order: shards``)
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a clone can be run without installing it

from unigame.data import WebDataset, open_files  # noqa: E402
from unigame.training.shard_order import ShardOrder  # noqa: E402

WAYS = ("everything", "reopened", "rows", "shards")
LOADERS = ((0, None), (2, 2), (4, 2), (4, 8))  # workers, and batches that each reads ahead
MOST = open_files.MOST


class SlowDisk:
    """Makes files of this process and of its workers slow, and counts what they do.

    Args:
        open_seconds: that opening a file takes.
        read_seconds: that reading a part of one takes.
    """

    def __init__(self, open_seconds: float, read_seconds: float) -> None:
        self.opened = multiprocessing.Value("q", 0)
        self.read = multiprocessing.Value("q", 0)
        disk = self

        class SlowFile(FileIO):
            def __init__(self, path: str) -> None:
                time.sleep(open_seconds)
                disk.count(disk.opened)
                super().__init__(path)

        class SlowSystem:
            @staticmethod
            def pread(number: int, size: int, offset: int) -> bytes:
                time.sleep(read_seconds)
                disk.count(disk.read)
                return os.pread(number, size, offset)

        open_files.FileIO = SlowFile  # type: ignore[attr-defined]
        open_files.os = SlowSystem  # type: ignore[attr-defined]

    @staticmethod
    def count(what: Any) -> None:
        """Add one, whichever process does it."""
        with what.get_lock():
            what.value += 1

    def taken(self) -> tuple[int, int]:
        """Files opened and parts read since the last call."""
        counts = self.opened.value, self.read.value
        self.opened.value = self.read.value = 0
        return counts


class Everything:
    """All rows of a step of all processes, of which the caller keeps its own."""

    def __init__(self, data: WebDataset, keep: int) -> None:
        self.data, self.keep = data, keep

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return [self.data[index] for index in indices][: self.keep]

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--rows", type=int, default=64, help="of a shard")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--step-ms", type=float, default=100)
    parser.add_argument("--open-ms", type=float, default=20)
    parser.add_argument("--read-ms", type=float, default=5)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*worker processes in total")  # they only sleep
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), options.shards, options.rows)
        data = WebDataset(folder, picture_only=True)
        disk = SlowDisk(options.open_ms / 1e3, options.read_ms / 1e3)
        for way in WAYS:
            for workers, ahead in LOADERS:
                name = f"workers {workers}" + (f", prefetch {ahead}" if ahead else "")
                found = measured(data, way, workers, ahead, disk, options)
                figures.setdefault(way, {})[name] = found
                print(f"{way:12} {name:22} {found}", file=sys.stderr, flush=True)
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    return record.write(figures, settings, options.json)


def write_shards(folder: Path, shards: int, rows: int) -> None:
    """Tars of small random pictures."""
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(rows):
                info = tarfile.TarInfo(f"{row:06d}.jpg")
                info.size = len(stream.getvalue())
                tar.addfile(info, io.BytesIO(stream.getvalue()))


def measured(
    data: WebDataset, way: str, workers: int, ahead: int | None, disk: SlowDisk, options: Any
) -> dict[str, float]:
    """The steps of the first process."""
    batch, processes = options.batch_size, options.processes
    open_files.MOST = 1 if way == "reopened" else MOST
    order: Sampler[int] = RandomSampler(data, generator=torch.Generator().manual_seed(0))
    if way == "shards":
        order = ShardOrder(data, processes, batch, seed=0)
    source: Any = data
    if way == "everything":
        source = Everything(data, batch)
        batches = list(BatchSampler(order, batch * processes, drop_last=True))
    else:
        batches = list(BatchSampler(order, batch, drop_last=True))[::processes]
    loader = DataLoader(
        source,
        batch_sampler=batches[: options.steps],
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=list,
    )
    open_files._mine.files = None  # nothing is open yet
    disk.taken()
    waits, rows, ready = [], 0, iter(loader)
    next_batch = next(ready)  # the workers start
    while next_batch is not None:
        rows += len(next_batch)
        time.sleep(options.step_ms / 1e3)
        begun = time.perf_counter()
        next_batch = next(ready, None)
        if next_batch is not None:
            waits.append(time.perf_counter() - begun)
    opened, read = disk.taken()
    waited, worked = sum(waits), len(waits) * options.step_ms / 1e3
    return {
        "wait_share": round(waited / (waited + worked), 3),
        "step_ratio": round((waited + worked) / worked, 2),
        "opened": round(opened / rows, 2),
        "read": round(read / rows, 2),
    }


if __name__ == "__main__":
    main()
