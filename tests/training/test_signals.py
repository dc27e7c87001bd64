"""Ctrl-C, SIGTERM and SIGHUP end a run alike: a whole checkpoint first, and a word about it."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.cli.test_cli import raising, stand_in
from tests.training.helpers import Records, lora_weights, make_trainer
from unigame import cli
from unigame.system import signals
from unigame.training import run_folder
from unigame.training.manifest import damage

ALL = ["SIGINT", "SIGTERM", "SIGHUP"]


class Signals(TrainerCallback):
    """Sends this process a signal in the middle of a step, or of an evaluation."""

    def __init__(self, name: str, step: int = 2, where: str = "on_substep_end") -> None:
        self.number, self.step = getattr(signal, name), step
        setattr(self, where, self.send)

    def send(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 50,
}


@pytest.fixture(scope="module")
def uncut(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of the same run without a signal."""
    straight = make_trainer(tiny_path, tmp_path_factory.mktemp("straight"), **SETTINGS)
    straight.train()
    return lora_weights(straight)


@pytest.mark.parametrize("name", ALL)
def test_a_signal_writes_a_checkpoint_that_goes_on_exactly(
    tiny_path: Path,
    tmp_path: Path,
    name: str,
    uncut: dict[str, torch.Tensor],
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = {one: signal.getsignal(one) for one in signals.SIGNALS}
    stopped = make_trainer(tiny_path, tmp_path, **SETTINGS)
    stopped.add_callback(Signals(name))
    with pytest.raises(signals.Stopped) as caught:
        stopped.train()
    assert caught.value.signum == getattr(signal, name)
    assert name in capfd.readouterr().err
    assert [path.name for path in run_folder.checkpoints(tmp_path)] == ["checkpoint-2"]
    assert damage(tmp_path / "checkpoint-2") is None
    assert {one: signal.getsignal(one) for one in signals.SIGNALS} == before

    resumed = make_trainer(tiny_path, tmp_path, **SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    for key, weight in uncut.items():
        assert torch.equal(weight, lora_weights(resumed)[key]), key


def test_an_evaluation_is_cut_and_not_waited_for(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_path,
        tmp_path,
        eval_dataset=Records(8),
        methods=["sft"],
        per_device_eval_batch_size=1,
        eval_strategy="steps",
        eval_steps=1,
        **SETTINGS,
    )
    signalling = Signals("SIGTERM", step=2, where="on_prediction_step")
    seen: list[int] = []
    signalling.on_evaluate = lambda *a, **k: seen.append(1)  # type: ignore[method-assign]
    trainer.add_callback(signalling)
    with pytest.raises(signals.Stopped):
        trainer.train()
    assert not seen and damage(tmp_path / "checkpoint-1") is None


def test_a_signal_in_the_last_step_keeps_what_was_trained(tiny_path: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "save_strategy": "no", "max_steps": 2, "methods": ["sft"]}
    trainer = make_trainer(tiny_path, tmp_path, **settings)
    trainer.add_callback(Signals("SIGTERM", step=3, where="on_train_end"))
    with pytest.raises(signals.Stopped):
        trainer.train()
    assert damage(tmp_path / "checkpoint-2") is None


def test_without_save_on_signal_the_run_ends_at_once(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, save_on_signal=False, **SETTINGS)
    trainer.add_callback(Signals("SIGINT"))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 1
    assert not run_folder.checkpoints(tmp_path)


def test_a_second_ctrl_c_ends_at_once_but_an_echo_does_not(monkeypatch) -> None:
    clock = [10.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    request = signals.StopRequest()
    request.take(signal.SIGINT)
    request.take(signal.SIGINT)  # the terminal's, after torchrun's
    request.take(signal.SIGTERM)
    clock[0] += 5
    request.take(signal.SIGTERM)  # who sends this can also kill
    with pytest.raises(signals.Stopped):
        request.take(signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with signals.held() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_train_without_handlers(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, methods=["sft"])
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("name", ALL)
def test_every_signal_says_what_was_kept(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "model: janus-nano\ndata: [{type: synthetic}]\n"
        f"training: {{output_dir: {tmp_path}/run}}\n"
    )
    (tmp_path / "run" / "checkpoint-30").mkdir(parents=True)

    def send(*args: Any) -> None:
        os.kill(os.getpid(), getattr(signal, name))

    stand_in(monkeypatch, "unigame.training.run", main=send)
    words = ["--overwrite_output_dir", "--beta", "0.3"]
    assert cli.main(["train", str(recipe), *words]) == 128 + getattr(signal, name)
    line = capsys.readouterr().err.strip()
    newest = tmp_path / "run" / "checkpoint-30"
    assert f"kept {newest}" in line and "\n" not in line
    assert line.endswith(f"unigame train {recipe} --beta 0.3 --resume_from_checkpoint {newest}")


def test_a_signal_after_the_training_does_not_advise_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "model: janus-nano\ndata: [{type: synthetic}]\n"
        f"training: {{output_dir: {tmp_path}/run}}\n"
    )
    (tmp_path / "run" / "checkpoint-30").mkdir(parents=True)
    (tmp_path / "run" / "trainer_state.json").write_text('{"global_step": 30}')
    stand_in(monkeypatch, "unigame.training.run", main=raising(signals.Stopped(signal.SIGHUP)))
    assert cli.main(["train", str(recipe)]) == 128 + signal.SIGHUP
    line = capsys.readouterr().err
    assert str(tmp_path / "run") in line and "resume" not in line


def test_only_the_first_process_speaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    from unigame.errors import OneProcessError, UserError

    monkeypatch.setenv("RANK", "1")
    for error, code, speaks in (
        (UserError("beta=-1"), 2, False),
        (OneProcessError("process 1: row 7"), 2, True),
        (signals.Stopped(signal.SIGTERM), 143, False),
    ):
        stand_in(monkeypatch, "unigame.demo.run", run_demo=raising(error))
        assert cli.main(["demo", "--output", str(tmp_path)]) == code
        assert bool(capsys.readouterr().err) is speaks
