"""The record of a run, and a training loop that goes on where it was stopped.

Every step draws its randomness from (seed, step), never from a state that would have to be kept,
so a checkpoint is weights, optimizer and the number of steps done.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

EVERY = 100


class Log:
    """Lines to the screen and to ``log.jsonl``: the recipe's record of what happened.

    ``seconds`` are of a clock, ``core_seconds`` what the process took of its cores.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.stage = folder / "log.jsonl", stage
        self.start, self.core_start = time.perf_counter(), time.process_time()

    def __call__(self, **fields: Any) -> None:
        """Write one line."""
        row = {
            "stage": self.stage,
            "seconds": round(time.perf_counter() - self.start, 1),
            "core_seconds": round(time.process_time() - self.core_start, 1),
            **{k: round(v, 4) if isinstance(v, float) else v for k, v in fields.items()},
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)  # noqa: T201


class Loop:
    """Steps of one optimizer with warm restarts from ``FOLDER/NAME.progress``.

    Args:
        model: what is saved; only parameters that require a gradient, and buffers named in
            ``also``, are.
        rate: the learning rate of a step.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rate: Callable[[int], float],
        log: Log,
    ) -> None:
        self.path, self.model, self.optimizer = folder / f"{name}.progress", model, optimizer
        self.rate, self.log = rate, log
        self.weights = [p for g in optimizer.param_groups for p in g["params"]]
        self.done, self.loss = 0, 0.0
        if self.path.exists():
            kept = torch.load(self.path, weights_only=True)
            model.load_state_dict(kept["model"])
            optimizer.load_state_dict(kept["optimizer"])
            self.done = int(kept["done"])
            log(resumed_at=self.done)

    def steps(self, total: int) -> Iterable[int]:
        """The steps still to do, each with its learning rate set and its random state."""
        for step in range(self.done, total):
            for group in self.optimizer.param_groups:
                group["lr"] = float(self.rate(step))  # a numpy number could not be read back
            yield step
            self.done = step + 1
            if self.done % EVERY == 0 or self.done == total:
                self.save()

    def descend(self, loss: Tensor) -> None:
        """One step down the gradient of ``loss``, clipped at norm 1."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.loss = loss.item()

    def save(self) -> None:
        """Write weights, optimizer and the number of steps done; never half a file."""
        partial = self.path.with_suffix(".partial")
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "done": self.done,
            },
            partial,
        )
        partial.replace(self.path)


def chance(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The randomness of one step."""
    generator = torch.Generator()
    generator.manual_seed(seed * 1_000_003 + step)
    return np.random.default_rng([seed, step]), generator


def portion(number: int, scale: float) -> int:
    """``scale`` of a number of steps or pictures, at least two: for trying the recipe quickly."""
    return max(2, round(number * scale))


def warm_cosine(step: int, total: int, warmup: int = 40, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
