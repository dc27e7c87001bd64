"""A checkpoint's name stands for a whole one, and what was damaged later is found and named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import Records, lora_weights, make_trainer
from unigame.errors import UserError
from unigame.training import resumable, run_folder
from unigame.training.manifest import MANIFEST_FILE, damage
from unigame.training.trainer import UniGameTrainer

ROOT = Path(__file__).resolve().parents[2]
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def saved(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a game of three steps, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(tiny_path, folder, max_steps=3, **SAVING).train()
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def checkpoints_in(folder: Path) -> set[str]:
    """What a run left, beside the pictures and words for its report."""
    return {path.name for path in folder.iterdir()} - {"about.json", "dynamics", "examples"}


def test_the_manifest_lists_every_file(saved: Path) -> None:
    folder = saved / "checkpoint-3"
    listed = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    there = {str(path.relative_to(folder)) for path in files(folder)}
    assert set(listed) == there - {MANIFEST_FILE}
    assert damage(folder) is None
    assert checkpoints_in(saved) == {f"checkpoint-{n}" for n in (1, 2, 3)}


def test_every_flipped_bit_and_missing_file_is_one_line_that_names_it(
    run: Path, tiny_path: Path, tmp_path: Path
) -> None:
    folder = run / "checkpoint-3"
    trainer = make_trainer(tiny_path, tmp_path / "other", max_steps=4)
    for path in files(folder):
        before = path.read_bytes()
        for harm in (flip, Path.unlink):
            harm(path)
            with pytest.raises(UserError) as caught:
                trainer.train(resume_from_checkpoint=str(folder))
            said = str(caught.value)
            assert path.name in said and "\n" not in said and "weights_only" not in said
            path.write_bytes(before)
    assert trainer.state.global_step == 0
    trainer.train(resume_from_checkpoint=str(folder))  # whole again
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "trainer_state.json", "game"])
def test_true_takes_the_newest_whole_one_and_says_which(
    run: Path, tiny_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    name = "selfplay_state.pt" if name == "game" else name
    flip(run / "checkpoint-3" / name)
    (run / "checkpoint-2" / name).unlink()
    trainer = make_trainer(tiny_path, run, max_steps=4)
    trainer.train(resume_from_checkpoint=True)
    assert f"Resuming from {run / 'checkpoint-1'}" in caplog.text
    assert f"checkpoint-3: {name}" in caplog.text and f"checkpoint-2: {name}" in caplog.text
    assert trainer.state.global_step == 4


def test_without_a_whole_one_each_is_named(run: Path, tiny_path: Path) -> None:
    for number in (1, 2, 3):
        (run / f"checkpoint-{number}" / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"checkpoint-3: .*checkpoint-2: .*checkpoint-1: "):
        make_trainer(tiny_path, run, max_steps=4).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_before_manifests_is_taken_only_where_trusted(
    run: Path, tiny_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run / "checkpoint-3"
    (folder / MANIFEST_FILE).unlink()
    assert run_folder.newest_whole(run).folder == run / "checkpoint-2"
    with pytest.raises(UserError, match="manifest.json is missing.*resume_anyway"):
        make_trainer(tiny_path, run, max_steps=4).train(resume_from_checkpoint=str(folder))
    trainer = make_trainer(tiny_path, run, max_steps=4, resume_anyway=True)
    trainer.train(resume_from_checkpoint=str(folder))
    assert "manifest.json is missing" in caplog.text and trainer.state.global_step == 4


@pytest.mark.parametrize("moment", ["_save_rng_state", "_save_optimizer_and_scheduler", "publish"])
def test_a_run_cut_while_writing_goes_on_as_if_it_had_not_been(
    saved: Path, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class Cut(BaseException):
        pass

    def cut(*args: Any, **kwargs: Any) -> None:
        raise Cut

    def last_step(trainer: UniGameTrainer) -> bool:
        return trainer.state.global_step == 2

    class Cutting(UniGameTrainer):
        def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
            if last_step(self):
                owner = resumable if moment == "publish" else UniGameTrainer
                monkeypatch.setattr(owner, moment, cut)
            super()._save_checkpoint(model, trial)

    with pytest.raises(Cut):
        make_trainer(tiny_path, tmp_path, kind=Cutting, max_steps=3, **SAVING).train()
    assert [path.name for path in run_folder.checkpoints(tmp_path)] == ["checkpoint-1"]
    monkeypatch.undo()
    make_trainer(tiny_path, tmp_path, max_steps=3, **SAVING).train(resume_from_checkpoint=True)
    assert not (tmp_path / run_folder.UNFINISHED).exists()
    for name in ("adapter_model.safetensors", "perturber.safetensors"):
        one, other = (folder / "checkpoint-3" / name for folder in (saved, tmp_path))
        assert one.read_bytes() == other.read_bytes(), name


def test_a_checkpoint_of_that_name_is_replaced_when_the_run_comes_by_again(
    run: Path, tiny_path: Path
) -> None:
    (run / "checkpoint-3" / "of-before").touch()
    trainer = make_trainer(tiny_path, run, max_steps=3, **SAVING)
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert not (run / "checkpoint-3" / "of-before").exists()
    assert damage(run / "checkpoint-3") is None
    assert checkpoints_in(run) == {f"checkpoint-{n}" for n in (1, 2, 3)}


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from tests.training.helpers import make_trainer
from unigame.training.trainer import UniGameTrainer

class Killed(UniGameTrainer):
    def _save_rng_state(self, folder):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_rng_state(folder)

settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
make_trainer(Path(sys.argv[1]), Path(sys.argv[2]), kind=Killed, **settings).train()
"""


def test_a_killed_run_leaves_no_lock_and_no_half_checkpoint(
    saved: Path, tiny_path: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny_path), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    resumed = make_trainer(tiny_path, tmp_path, max_steps=3, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    one, other = (f / "checkpoint-3" / "adapter_model.safetensors" for f in (saved, tmp_path))
    assert one.read_bytes() == other.read_bytes()


def test_the_best_checkpoint_keeps_its_place_in_the_state(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_path,
        tmp_path,
        eval_dataset=Records(4),
        methods=["sft"],
        learning_rate=5.0,  # the first step is the best
        lr_scheduler_type="constant",
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_total_limit=2,
        load_best_model_at_end=True,
        **SAVING,
    )
    trainer.train()
    best = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    name = Path(str(best["best_model_checkpoint"])).name
    assert (
        best["best_model_checkpoint"] == str(tmp_path / name) == trainer.state.best_model_checkpoint
    )
    assert checkpoints_in(tmp_path) == {name, "checkpoint-3"}
    flip(tmp_path / name / "adapter_model.safetensors")
    with pytest.raises(UserError, match="adapter_model.safetensors"):
        trainer._load_best_model()


def test_a_full_disk_is_one_line(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    trainer = make_trainer(tiny_path, tmp_path, methods=["sft"], max_steps=1, **SAVING)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="checkpoint-1 cannot be written .No space left"):
        trainer.train()
    assert not run_folder.checkpoints(tmp_path)


def test_a_resumed_run_says_the_mean_loss_of_all_its_steps(
    run: Path, tiny_path: Path, tmp_path: Path
) -> None:
    straight = make_trainer(tiny_path, tmp_path / "straight", max_steps=3, logging_steps=2)
    straight.train()
    resumed = make_trainer(tiny_path, run, max_steps=3, logging_steps=2)
    resumed.train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert resumed.guard.mean_loss == straight.guard.mean_loss
    losses = json.loads((run / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    mean = sum(entry["loss"] for entry in losses if "loss" in entry) / 3
    assert straight.guard.mean_loss == pytest.approx(mean, abs=1e-5)
    assert lora_weights(resumed)
