"""What steps wait for their data: logged, warned of once, and found at the end."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.training.helpers import Records, logs, make_trainer
from unigame.training import waiting


class Slow(Records):
    """Records of a slow disk."""

    seconds = 0.08

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(self.seconds)
        return super().__getitem__(index)


def test_waiting_is_logged_warned_of_once_and_found(
    tiny_path, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(waiting, "LEAST_STEPS", 3)
    monkeypatch.setattr(waiting, "TOO_LONG", 0.3)
    settings: dict[str, Any] = {"methods": ["sft"], "per_device_train_batch_size": 4}
    trainer = make_trainer(tiny_path, tmp_path, Slow(8), max_steps=8, **settings)
    trainer.train()
    # An epoch's first step waits for two batches, and its last one for none.
    assert sum(entry["seconds_wait"] for entry in logs(trainer)) >= 8 * 4 * Slow.seconds
    assert all(0 <= entry["wait_share"] < 1 for entry in logs(trainer))
    assert caplog.text.count("for data") == 1 and "dataloader_num_workers (now 0)" in caplog.text
    assert [finding.symptom for finding in trainer.health()] == ["data too slow"]
    caplog.clear()
    Slow.seconds = 0.0
    quick = make_trainer(tiny_path, tmp_path / "quick", Slow(8), max_steps=8, **settings)
    monkeypatch.setattr(waiting, "TOO_LONG", 0.9)
    quick.train()
    assert "for data" not in caplog.text and not quick.health()


def test_what_comes_after_a_step_is_not_its_time(tiny_path, tmp_path, monkeypatch) -> None:
    trainer = make_trainer(tiny_path, tmp_path, Records(8), max_steps=1, methods=["sft"])
    clock = iter([0.0, 1.0, 4.0, 100.0, 103.0, 104.0])  # begun, read, done; the next step
    monkeypatch.setattr(waiting.time, "perf_counter", lambda: next(clock))
    for _ in range(2):
        with trainer.waiting.for_data():
            pass
        trainer.waiting.on_step_end(trainer.args, trainer.state, trainer.control)
    trainer.waiting.flush(trainer.meter)
    figures = trainer.meter.flush(lambda values: values)
    assert figures["seconds_wait"] == pytest.approx(2.0)
    assert figures["wait_share"] == pytest.approx(4 / 8)
