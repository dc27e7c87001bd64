"""An optimizer that goes on from a checkpoint under its own settings, not the checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

SETTINGS = ("initial_lr", "weight_decay", "betas", "eps", "momentum", "alpha", "nesterov")


def follow_settings(optimizer: Any, scheduler: Any, load: Callable[[], None]) -> None:
    """Call ``load``, which restores both; then give back the settings that they were made with.

    A checkpoint holds learning rates, decays and betas beside the moments, and torch restores
    them all: a run that was asked to go on with others would silently keep the old ones. Where they
    are equal nothing is changed, to the bit. The place in the schedule stays the checkpoint's: of a
    run that has become longer, the next step has the new schedule's rate at that place. A rate that
    was found by measuring (``reduce_lr_on_plateau``) stays, too.

    Args:
        optimizer: of torch, or one that wraps it.
        scheduler: its schedule; None: it has none.
        load: restores the states of both.
    """
    made = [_settings(group) for group in optimizer.param_groups]
    schedule = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps it
    bases = list(getattr(schedule, "base_lrs", ()))
    load()
    for group, own in zip(optimizer.param_groups, made, strict=True):
        before, now = group.get("initial_lr"), own.get("initial_lr")
        if before and now is not None and before != now:
            group["lr"] = group["lr"] / before * now
        group |= own
    if bases and bases != list(schedule.base_lrs):
        schedule.base_lrs = bases
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]  # what is logged
    if isinstance(schedule, LambdaLR):
        _follow_schedule(optimizer, schedule)


def _follow_schedule(optimizer: Any, schedule: LambdaLR) -> None:
    """Rates as this schedule has them at its place, computed as its own ``step`` does."""
    shares = [share(schedule.last_epoch) for share in schedule.lr_lambdas]
    for group, base, share in zip(optimizer.param_groups, schedule.base_lrs, shares, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(base * share)
        else:
            group["lr"] = base * share
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Of a group of parameters; ``lr`` is where the schedule stands, and some count there."""
    return {name: group[name] for name in SETTINGS if name in group}
