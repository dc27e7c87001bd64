"""Several ranks on CPUs, without having said so: they train and stop together, and say it once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.helpers import make_config
from unigame.errors import UserError
from unigame.training import ranks
from unigame.training.manifest import damage

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 400  # a hang is what these tests are about


def launch(*words: str) -> list[tuple[int, str, str]]:
    """Code, stdout and stderr of both processes of ``python words``, as torchrun starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {name: text for name, text in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    common |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *words],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=LIMIT_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(one.returncode, *text) for one, text in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def found(launched: Path) -> tuple[Path, list[dict]]:
    folder = launched / "stop"
    return folder, [json.loads((folder / f"rank{i}.json").read_text()) for i in range(2)]


def test_without_use_cpu_the_ranks_still_train_together(found) -> None:
    assert [rank["ranks"] for rank in found[1]] == [2, 2]


def test_a_signal_to_one_rank_stops_all_after_the_same_step(found) -> None:
    folder, both = found
    assert [rank["stopped"] for rank in both] == ["Stopped: SIGTERM"] * 2
    assert damage(folder / "run" / "checkpoint-2") is None
    assert [rank["equal"] for rank in both] == [True, True]
    assert both[0]["losses"][0] == both[0]["losses"][1] == both[1]["losses"][0]


def test_a_nan_on_one_rank_is_a_divergence_on_all(found) -> None:
    folder, both = found
    assert all(rank["diverged"].startswith("Diverged: the loss is nan at step 2") for rank in both)
    assert (folder / "bad" / "last_finite" / "adapter_model.safetensors").exists()


def test_what_one_rank_refuses_all_refuse(found) -> None:
    assert all("beta: 0.5 there, 0.1 here" in rank["refused"] for rank in found[1])


def test_a_mistake_is_one_line_from_the_first_rank(tiny_path: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {tiny_path}\ndata: [{{type: vqa, path: {tmp_path}/gone.jsonl}}]\n"
        f"training: {{output_dir: {tmp_path}/run}}\n"
    )
    first, second = launch("-m", "unigame.cli", "train", str(recipe))
    assert (first[0], second[0]) == (2, 2)
    (line,) = [text for text in (first[2] + second[2]).splitlines() if "gone.jsonl" in text]
    assert line.startswith("unigame: error: ") and line in first[2]
    assert "Traceback" not in first[2] + second[2]


@pytest.mark.parametrize("value", ["2", "two"])
def test_a_world_size_without_a_launcher_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(UserError, match=f"WORLD_SIZE='?{value}"):
        make_config(tmp_path)


def test_processes_that_do_not_know_of_each_other_are_refused() -> None:
    ranks.require_processes(1, 1)
    ranks.require_processes(2, 2)
    with pytest.raises(UserError, match="WORLD_SIZE=2"):
        ranks.require_processes(2, 1)
