"""An optimizer that goes on from a checkpoint: its moments, and this run's settings."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from unigame.system.following import follow_settings


def made(rate: float, decay: float, steps: int = 0) -> tuple[torch.optim.AdamW, LambdaLR]:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=decay)
    scheduler = LambdaLR(optimizer, lambda step: 1 - step / 10)
    for _ in range(steps):
        weight.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler


def go_on(rate: float, decay: float) -> tuple[dict[str, Any], dict[str, Any], LambdaLR]:
    """The group of parameters as the checkpoint has it, and as it is afterwards."""
    before, plan = made(1e-3, 0.1, steps=4)
    optimizer, scheduler = made(rate, decay)

    def load() -> None:
        optimizer.load_state_dict(copy.deepcopy(before.state_dict()))
        scheduler.load_state_dict(plan.state_dict())

    follow_settings(optimizer, scheduler, load)
    assert optimizer.state_dict()["state"][0]["step"] == 4
    return before.param_groups[0], optimizer.param_groups[0], scheduler


def test_equal_settings_go_on_to_the_bit() -> None:
    before, after, scheduler = go_on(1e-3, 0.1)
    assert {k: v for k, v in before.items() if k != "params"} == {
        k: v for k, v in after.items() if k != "params"
    }
    assert scheduler.last_epoch == 4 and scheduler.get_last_lr() == [before["lr"]]


def test_what_an_optimizer_counts_in_its_groups_stays_the_checkpoints() -> None:
    optimizer, scheduler = made(1e-3, 0.1)

    def load() -> None:
        optimizer.param_groups[0]["k"] = 5  # as schedule-free optimizers do

    optimizer.param_groups[0]["k"] = 0
    follow_settings(optimizer, scheduler, load)
    assert optimizer.param_groups[0]["k"] == 5


def test_other_settings_are_followed_from_the_same_place_in_the_schedule() -> None:
    _, after, scheduler = go_on(1e-6, 0.3)
    assert after["lr"] == pytest.approx(0.6e-6) and after["weight_decay"] == 0.3
    assert scheduler.get_last_lr() == [after["lr"]]
    scheduler.optimizer.step()
    scheduler.step()
    assert after["lr"] == pytest.approx(0.5e-6)


def test_a_longer_run_goes_on_with_the_new_schedules_rate() -> None:
    before, plan = made(1e-3, 0.1, steps=4)
    optimizer, _ = made(1e-3, 0.1)
    scheduler = LambdaLR(optimizer, lambda step: 1 - step / 100)

    def load() -> None:
        optimizer.load_state_dict(copy.deepcopy(before.state_dict()))
        scheduler.load_state_dict(plan.state_dict())

    follow_settings(optimizer, scheduler, load)
    (group,) = optimizer.param_groups
    assert group["lr"] == 1e-3 * (1 - 4 / 100) != before.param_groups[0]["lr"]
    assert scheduler.get_last_lr() == [group["lr"]]
