"""1 x 8 = 8 x 1: accumulating eight single samples is the step on a batch of eight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from tests.training.helpers import Losses, Records, game_of, logs, lora_weights, make_trainer


class Uneven(Dataset[dict[str, Any]]):
    """Records of three kinds, so that micro-batches differ in what they hold."""

    def __init__(self) -> None:
        self.items = [dict(item) for item in Records(8, captions=True).items]
        for item in self.items[:3]:
            item["question"] = item["answer"] = None
        for item in self.items[5:]:
            item["caption"] = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


def run(model: Path, folder: Path, data: Any, batch: int, **settings: Any) -> tuple[Any, Any]:
    trainer = make_trainer(
        model,
        folder,
        data,
        methods=["sft"],
        max_steps=3,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=8 // batch,
        max_grad_norm=0.0,
        **settings,
    )
    trainer.train()
    return Losses(trainer.state.log_history).values, lora_weights(trainer)


@pytest.mark.parametrize("reduction", ["sample", "token"])
@pytest.mark.parametrize("mixed", [False, True])
def test_accumulation_is_equivalent(
    tiny_path: Path, tmp_path: Path, reduction: str, mixed: bool
) -> None:
    data = Uneven() if mixed else Records(8, long_answers=True)
    settings = {"loss_reduction": reduction, "generation_weight": 0.5 if mixed else 0.0}
    whole, weights = run(tiny_path, tmp_path, data, 8, **settings)
    parts, other = run(tiny_path, tmp_path, data, 1, **settings)
    assert parts == pytest.approx(whole, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(other[name], weight, atol=2e-4, rtol=0)


RESTARTED = {
    "clip_floor": 0.999,  # nothing is verified, so C starts anew in every step
    "perturber_scope": "shared",
    "restart_below": 0.9,
    "restart_window": 4,
}


@pytest.mark.parametrize("settings", [{}, RESTARTED], ids=["replayed", "restarted"])
def test_in_the_game_c_moves_once_a_step(
    tiny_path: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Each picture is drawn by its likeliest codes, and replayed in the step that drew it."""
    trainers = []
    for batch in (4, 2):
        trainer = make_trainer(
            tiny_path,
            tmp_path,
            Records(8, captions=True),
            max_steps=3,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=4 // batch,
            buffer=False,
            hard_batch_size=batch,
            **settings,
        )
        trainer.train()
        trainers.append(trainer)
    whole, parts = trainers
    assert Losses(parts.state.log_history).values == pytest.approx(
        Losses(whole.state.log_history).values, abs=1e-5
    )
    for name, weight in lora_weights(whole).items():
        torch.testing.assert_close(lora_weights(parts)[name], weight, atol=2e-4, rtol=0)
    for name, weight in game_of(whole).perturber.state_dict().items():
        torch.testing.assert_close(
            game_of(parts).perturber.state_dict()[name], weight, atol=2e-4, rtol=0
        )
    for trainer in trainers:
        assert {int(s["step"]) for s in game_of(trainer).optimizer.state.values()} == {3}
        assert all("perturber_grad_norm" in entry for entry in logs(trainer))
        assert game_of(trainer).challenger.heads.restarts == [3 if settings else 0]
        assert ("hard_ce" in logs(trainer)[0]) == (not settings)
