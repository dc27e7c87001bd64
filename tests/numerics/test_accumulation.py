"""1 x 8 = 8 x 1: accumulating eight single samples is the step on a batch of eight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from tests.training.helpers import Losses, Records, lora_weights, make_trainer


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
