"""What several files of these tests look at, made once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 900  # a hang is what tests of ranks are about


@pytest.fixture(scope="session")
def launched(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote, started by torchrun on CPUs without having said so.

    Once for all workers of pytest-xdist, which have one folder above their own.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return launch(tiny_path, tmp_path_factory.mktemp("launched"))
    folder = tmp_path_factory.getbasetemp().parent / "launched"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker whose launch failed
            folder.mkdir()
            launch(tiny_path, folder)
            (folder / "done").touch()
    return folder


def launch(model: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", "0", "--rdzv_endpoint", "localhost:0", "--rdzv_backend", "c10d"]
    env = {name: text for name, text in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    done = subprocess.run(
        [*command, "-m", "tests.training.launched", str(model), str(folder)],
        cwd=ROOT,
        env={**env, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder
