"""Two runs never write into one folder, and a dead one keeps nobody out."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tests.training.helpers import make_trainer
from unigame.errors import UserError
from unigame.training.lock import LOCK_FILE, FolderLock


def hold(folder: Path, held: Any) -> None:
    lock = FolderLock(folder)
    held.set()
    time.sleep(600)
    lock.release()


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """Another process that holds ``tmp_path / 'run'``: a fork, which imports nothing again."""
    forks = multiprocessing.get_context("fork")
    held = forks.Event()
    process = forks.Process(target=hold, args=(tmp_path / "run", held))
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def test_the_second_run_is_refused_and_told_who_is_there(
    other: Any, tiny_path: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_path, tmp_path / "run")
    with pytest.raises(UserError, match=f"run'.*in use.*process {other.pid}"):
        trainer.train()
    assert trainer.state.global_step == 0
    other.kill()  # no time to clean up
    other.join()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    trainer.train()
    assert trainer.state.global_step == 2
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_two_runs_of_one_process_are_two_runs(tiny_path: Path, tmp_path: Path) -> None:
    second = make_trainer(tiny_path, tmp_path, methods=["sft"])
    refused: list[str] = []

    class Starts(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with pytest.raises(UserError) as caught:
                second.train()
            refused.append(str(caught.value))

    first = make_trainer(tiny_path, tmp_path, methods=["sft"])
    first.add_callback(Starts())
    first.train()
    assert len(refused) == 2 and all(str(tmp_path) in text for text in refused)
    second.train()  # now it may


def test_a_link_to_the_folder_is_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    lock = FolderLock(tmp_path / "run")
    with pytest.raises(UserError, match="in use"):
        FolderLock(tmp_path / "link")
    lock.release()
    FolderLock(tmp_path / "link").release()


def test_a_folder_made_for_nothing_goes_again(tmp_path: Path) -> None:
    FolderLock(tmp_path / "run").release()
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    FolderLock(tmp_path / "mine").release()
    assert (tmp_path / "mine").is_dir()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/run"):
        FolderLock(tmp_path / "file" / "run")
    with pytest.raises(UserError, match="output_dir='.*cannot be written .*too long"):
        FolderLock(tmp_path / ("a" * 300))
