"""Figures of the game between two logging steps: means, counts and seconds per phase.

Everything is kept as (sum, count) on the device where it arises, so that logging costs one
reduction over ranks and one transfer per logging step, not one per figure and step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

PHASES = ("read", "encode", "challenge", "mine", "mix", "understand")
# What a challenge says of itself; ``redrawn_*`` and ``attack_*`` need the redrawn baseline.
CHALLENGE_FIGURES = (
    "adversarial_ce",
    "redrawn_ce",
    "similarity",
    "redrawn_similarity",
    "below_floor",
    "codes_changed",
    "redrawn_codes_changed",
    "attack_codes_changed",
    "label_penalty",
    "eps",
    "delta_relative",
)
# A fixed list in a fixed order: every rank reduces the same tensor, whatever it happened to see.
NAMES = (
    "clean_ce",
    "hard_ce",
    "clean_answer_ce",
    "hard_answer_ce",
    "generation_loss",
    *CHALLENGE_FIGURES,
    "perturber_objective",
    "perturber_grad_norm",
    "perturber_learning_rate",
    "acceptance_rate",
    "attack_success_rate",
    "redrawn_success_rate",
    "buffer_size",
    "replayed",
    "learned_rate",
    "hardness_q25",
    "hardness_q50",
    "hardness_q75",
    *(f"seconds_{phase}" for phase in PHASES),
)
# Rows that train nothing: they have only a caption, and generation_weight is 0.
SUMS = (
    "skipped_images",
    "skipped_records",
    "unused_rows",
)  # totals over ranks and steps, not means
ALL_NAMES = NAMES + SUMS


class Meter:
    """Running means by name, averaged over ranks when they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pairs: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Add ``count`` observations that sum to ``total``; a count of 0 adds nothing."""
        assert name in ALL_NAMES, name
        pair = torch.stack([_scalar(total, self.device), _scalar(count, self.device)])
        self._pairs[name] = self._pairs[name] + pair if name in self._pairs else pair

    def add_mean(self, name: str, values: Tensor) -> None:
        """Add every element of ``values`` as one observation."""
        self.add(name, values.detach().float().sum(), float(values.numel()))

    def flush(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means of everything observed anywhere since the last flush, and start again.

        Args:
            reduce: sums a tensor over ranks; called exactly once, on every rank alike.
        """
        empty = torch.zeros(2, dtype=torch.float64, device=self.device)
        pairs = torch.stack([self._pairs.get(name, empty) for name in ALL_NAMES])
        self._pairs = {}
        rows = reduce(pairs).tolist()
        return {
            name: total if name in SUMS else total / count
            for name, (total, count) in zip(ALL_NAMES, rows, strict=True)
            if count > 0
        }


class EvaluationLoss:
    """The loss of an evaluation: of answers and of captions, each a mean over all of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pairs = {name: torch.zeros(2, device=device) for name in ("answers", "captions")}

    def add(self, name: str, mean: Tensor, count: float) -> None:
        """A batch's mean over ``count`` answers or captions."""
        self._pairs[name] += torch.stack([mean.detach().float() * count, mean.new_tensor(count)])

    def mean(self, generation_weight: float, reduce: Callable[[Tensor], Tensor]) -> float:
        """Answers' mean plus the weight times captions'; NaN where there is nothing to judge.

        Args:
            generation_weight: of the captions.
            reduce: sums a tensor over ranks.
        """
        rows = reduce(torch.stack(list(self._pairs.values()))).tolist()
        parts = [
            weight * total / count
            for weight, (total, count) in zip((1.0, generation_weight), rows, strict=True)
            if count > 0
        ]
        return sum(parts) if parts else math.nan


class PhaseTimer:
    """Seconds spent in each phase of a step.

    On CUDA it records events and reads them at logging time, so that timing adds no
    synchronisation to the step.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._seconds: dict[str, list[float]] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as one occurrence of phase ``name``."""
        assert name in PHASES, name
        if self.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            begun = time.perf_counter()
            yield
            self._seconds.setdefault(name, []).append(time.perf_counter() - begun)

    def flush(self, meter: Meter) -> None:
        """Hand what was timed to ``meter`` as ``seconds_<phase>`` and start again."""
        if self._events:
            torch.cuda.synchronize()
            for name, start, end in self._events:
                self._seconds.setdefault(name, []).append(start.elapsed_time(end) / 1000)
            self._events = []
        for name, seconds in self._seconds.items():
            meter.add(f"seconds_{name}", sum(seconds), len(seconds))
        self._seconds = {}


def _scalar(value: Tensor | float, device: torch.device) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=device).detach()
