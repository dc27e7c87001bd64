"""Two ranks: nobody waits for nobody, both players stay replicated, and 2 x 1 = 1 x 2."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.two_ranks import joint

LIMIT_SECONDS = 240  # a hang is what this test is about


def start(model: Path, folder: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    command = [sys.executable, "-m", "tests.training.two_ranks", str(model), str(folder)]
    return [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"rank{rank}.err").open("wb"),
        )
        for rank in range(2)
    ]


def test_two_ranks_play_one_game(tiny_path: Path, tmp_path: Path) -> None:
    ranks = start(tiny_path, tmp_path)
    try:
        codes = [rank.wait(timeout=LIMIT_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    errors = (tmp_path / "rank0.err").read_text()[-2000:]
    assert codes == [0, 0], errors
    one, other = (json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2))

    alone = joint(tiny_path, tmp_path / "alone", batch=2)
    assert one["losses"] == pytest.approx(alone, abs=1e-5)

    # rank 0 sees only answers, rank 1 only captions: C learns from rank 0, both keep the same C
    assert one["lora"] == pytest.approx(other["lora"], rel=1e-9)
    assert one["perturber"] == other["perturber"]
    assert one["updates"] == other["updates"] == 4
    assert (one["buffer"], other["buffer"]) == (3, 0)
    *played, last = one["logs"]
    assert all({"clean_ce", "generation_loss", "hard_ce"} <= entry.keys() for entry in played)
    assert "clean_ce" not in last and (last["text_rows"], last["unused_rows"]) == (1, 0)
    names = {path.name for path in (tmp_path / "game" / "checkpoint-2").iterdir()}
    assert {"selfplay_state_0.pt", "selfplay_state_1.pt", "perturber.safetensors"} <= names
