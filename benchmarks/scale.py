"""What each part that grows with the data costs a row: bytes in memory or on disk, microseconds.

    rows        texts and paths, as readers keep them that have no table
    table       rows of a table (parquet, arrow, the Hub), which stay on the disk; one row is read
    mixture     the index of an epoch, remade at each
    skips       the report of rows that were left out
    buffer      one mining step into a full buffer of hard samples
    store       predictions of an evaluation: read, and written

docs/scale.md multiplies them out. Bytes of Python objects are tracemalloc's; times are measured
without it, in one process that has the machine to itself.

Usage:
    python benchmarks/scale.py --rows 100000 --json scale.json
"""

from __future__ import annotations

import argparse
import gc
import io
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import record
import torch
from PIL import Image

from unigame.data import HFData
from unigame.data.dataset import RecordDataset, Row
from unigame.data.mixture import Mixture
from unigame.data.skips import SkipReport
from unigame.evaluation.ranks import Ranks, RankStore
from unigame.methods.selfplay.buffer import HardSample, HardSampleBuffer


class Length:
    """A source that has a length and nothing else."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows


def seconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def held(make: Callable[[], Any]) -> int:
    """Bytes of Python objects that what ``make`` gives holds."""
    gc.collect()
    tracemalloc.start()
    kept = make()
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return size


def rows(count: int) -> dict[str, float]:
    """Opening a data set."""

    def open_data() -> RecordDataset:
        made = (
            Row(f"row-{i:09}", f"train2014/{i:012}.jpg", f"what is at place {i}?", f"a thing {i}")
            for i in range(count)
        )
        return RecordDataset(made, where="made up", root=Path(), verify="none")

    return {"bytes": held(open_data) / count, "us": 1e6 * seconds(open_data) / count}


def table(count: int) -> dict[str, float]:
    """Opening a table of small pictures, and reading the texts of one row of it."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    picture = {"bytes": stream.getvalue(), "path": None}
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        asked = [f"what is at place {i}?" for i in range(count)]
        columns = {"question": asked, "answer": [f"a thing {i}" for i in range(count)]}
        columns["image"] = [picture] * count  # type: ignore[assignment,list-item]
        datasets.Dataset.from_dict(columns).save_to_disk(folder)

        def open_data() -> HFData:
            return HFData(folder)

        gc.collect()
        tracemalloc.start()
        data = open_data()
        gc.collect()
        now, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        places = random.Random(0).choices(range(count), k=1000)
        reading = seconds(lambda: [data._rows[place] for place in places])
        return {
            "bytes": now / count,
            "most_bytes": most / count,
            "us": 1e6 * seconds(open_data) / count,
            "read_us": 1e6 * reading / len(places),
        }


def mixture(count: int) -> dict[str, float]:
    """The index of two sources."""
    mixed = Mixture([Length(count - count // 4), Length(count // 4)])  # type: ignore[list-item]
    size = mixed._source.nbytes + mixed._row.nbytes
    return {"bytes": size / count, "us": 1e6 * seconds(lambda: mixed.set_epoch(1)) / count}


def skips(count: int) -> dict[str, float]:
    """A report in which every row was left out."""

    def report() -> SkipReport:
        found = SkipReport()
        for i in range(count):
            found.add(f"row-{i:09}", "missing image")
        found.summary()
        return found

    return {"bytes": held(report) / count, "us": 1e6 * seconds(report) / count}


def buffer(capacity: int, tokens: int = 576) -> dict[str, float]:
    """A full buffer: on disk, and one push into it, a sample of its capacity."""
    generator = torch.Generator().manual_seed(0)

    def candidates(count: int) -> list[HardSample]:
        hardness = torch.rand(count, generator=generator).tolist()
        codes = torch.randint(16384, (count, tokens), generator=generator)
        return [
            HardSample(codes[i].clone(), "what is it?", "a thing", hardness[i], 0.9, f"{i}", 0)
            for i in range(count)
        ]

    full = HardSampleBuffer(capacity, per_source=2)
    full.push(candidates(capacity))
    new = candidates(16)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "buffer.pt"
        saving = seconds(lambda: torch.save(full.state_dict(), file))
        size = file.stat().st_size
    pushing = seconds(lambda: full.push(new))
    return {
        "bytes": size / capacity,
        "us": 1e6 * pushing / capacity,
        "save_us": 1e6 * saving / capacity,
    }


def store(count: int) -> dict[str, float]:
    """Predictions of an evaluation."""
    common = {"text": "a short reply", "pictures": [], "error": "", "request": "0" * 12}
    made = [{"id": f"row-{i:09}", **common, "asked": f"{i:012}"} for i in range(count)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = RankStore(folder, Ranks())
        writing = seconds(lambda: [first.append(*made[i : i + 64]) for i in range(0, count, 64)])
        disk = (folder / "predictions.jsonl").stat().st_size
        return {
            "bytes": held(lambda: RankStore(folder, Ranks())) / count,
            "us": 1e6 * seconds(lambda: RankStore(folder, Ranks())) / count,
            "disk_bytes": disk / count,
            "write_us": 1e6 * writing / count,
        }


def main() -> None:
    """Measure all, print it, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {
        "rows": rows(args.rows),
        "table": table(args.rows),
        "mixture": mixture(10 * args.rows),
        "skips": skips(args.rows),
        "buffer": buffer(max(1, args.rows // 100)),
        "store": store(args.rows // 4),
    }
    for part, figures in found.items():
        print(f"{part:8}", "  ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    record.write(found, {"rows": args.rows}, args.json)


if __name__ == "__main__":
    main()
