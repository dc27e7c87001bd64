"""Figures between two logging steps: means, counts, and seconds and memory per phase.

Everything is kept as (sum, count) where it arises, a GPU's tensors there and numbers on the host:
what goes from one to the other makes the host wait for all that the GPU still has to do. So logging
costs one reduction over ranks and one transfer each way per logging step, not one per figure and
step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from unigame.errors import UserError
from unigame.methods.base import Method

PHASES = ("read", "encode", "understand")
"""Parts of a step that the trainer times; a method names its own."""
FIGURES = (
    "clean_ce",
    "clean_answer_ce",
    "generation_loss",
    "reconstruction_loss",
    "seconds_wait",
    "wait_share",
)
SUMS = (
    "skipped_images",
    "skipped_records",
    "unused_rows",
    "text_rows",
    "several_picture_rows",
)
"""Totals over ranks and steps, not means; unused rows train nothing. The last two train U alone."""


def names_of(methods: Sequence[Method]) -> tuple[str, ...]:
    """What is logged, in a fixed order: every rank reduces the same tensor, whatever it saw.

    Raises:
        UserError: two methods log a figure of the same name.
    """
    phases = dict.fromkeys([*PHASES, *(phase for method in methods for phase in method.phases)])
    figures = [*FIGURES, *(figure for method in methods for figure in method.figures)]
    timed = [f"{what}_{phase}" for what in ("seconds", "memory") for phase in phases]
    names = (*figures, *timed, *SUMS)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"the figure {twice[0]!r} is logged twice; let each method name its figures alone"
        )
    return names


class Meter:
    """Running means by name, averaged over ranks when they are read.

    Args:
        device: where they are added up over ranks.
        methods: log figures of their own.
    """

    def __init__(self, device: torch.device, methods: Sequence[Method] = ()) -> None:
        self.device = device
        self.names = names_of(methods)
        # By name and place: 0, the sum, or 1, the count.
        self._numbers: dict[tuple[str, int], float] = {}
        self._tensors: dict[tuple[str, int], Tensor] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Add ``count`` observations that sum to ``total``; a count of 0 adds nothing."""
        assert name in self.names, f"{name} is in no method's figures"
        for place, value in enumerate((total, count)):
            key = name, place
            if isinstance(value, Tensor) and value.device.type != "cpu":
                value = value.detach().to(self.device, torch.float64)
                self._tensors[key] = self._tensors[key] + value if key in self._tensors else value
            else:
                number = float(value.item() if isinstance(value, Tensor) else value)
                self._numbers[key] = self._numbers[key] + number if key in self._numbers else number

    def add_mean(self, name: str, values: Tensor) -> None:
        """Add every element of ``values`` as one observation."""
        self.add(name, values.detach().float().sum(), float(values.numel()))

    def flush(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means of everything observed anywhere since the last flush, and start again.

        Args:
            reduce: sums a tensor over ranks; called exactly once, on every rank alike.
        """
        keys = [(name, place) for name in self.names for place in (0, 1)]
        numbers = [self._numbers.get(key, 0.0) for key in keys]
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        if self._tensors:
            zero = torch.zeros((), dtype=torch.float64, device=self.device)
            sums = sums + torch.stack([self._tensors.get(key, zero) for key in keys])
        self._numbers, self._tensors = {}, {}
        rows = reduce(sums.view(-1, 2)).tolist()
        return {
            name: total if name in SUMS else total / count
            for name, (total, count) in zip(self.names, rows, strict=True)
            if count > 0
        }


class EvaluationLoss:
    """The loss of an evaluation: of answers and of captions, each a mean over all of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pairs = {name: torch.zeros(2, device=device) for name in ("answers", "captions")}

    def add(self, name: str, mean: Tensor, count: float) -> None:
        """A batch's mean over ``count`` answers or captions."""
        self._pairs[name] += torch.stack([mean.detach().float() * count, mean.new_full((), count)])

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

    Attributes:
        memory: what phases hold at their worst moment.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.memory = PhaseMemory(device)
        self._seconds: dict[str, list[float]] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as one occurrence of phase ``name``."""
        with self.memory.phase(name), self._timed(name):
            yield

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
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
        self.memory.flush(meter)


class PhaseMemory:
    """The most memory that a GPU's tensors took in a phase, the model included, in MiB.

    The allocator keeps one high-water mark, which has to be set back to see a single phase. So that
    others can still read it, and because peaks hardly change, only every ``EVERY``-th occurrence of
    a phase is looked at, and only while the trainer trains (``on``). Without a GPU nothing is
    measured: a process's own figures there say more of malloc's habits than of the phase.
    """

    EVERY = 20

    def __init__(self, device: torch.device) -> None:
        self.device, self.on = device, False
        self._seen: dict[str, int] = {}
        self._peaks: dict[str, list[float]] = {}
        self._busy = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within: one occurrence; a phase inside another is part of that one."""
        if not self.on or self._busy or self.device.type != "cuda":
            yield
            return
        number = self._seen[name] = self._seen.get(name, -1) + 1
        if number % self.EVERY:
            yield
            return
        self._busy = True
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            yield
        finally:
            self._busy = False
        peak = torch.cuda.max_memory_allocated(self.device) / 2**20
        self._peaks.setdefault(name, []).append(peak)

    def flush(self, meter: Meter) -> None:
        """Hand the peaks to ``meter`` as ``memory_<phase>`` and start again."""
        for name, peaks in self._peaks.items():
            meter.add(f"memory_{name}", sum(peaks), len(peaks))
        self._peaks = {}
