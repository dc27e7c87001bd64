"""How long steps wait for their data, and a warning where that is a good part of a step.

A step waits until its own batches are read and those of all other ranks are: the counts of rows
that ranks exchange before each step make all wait for the slowest. On a GPU the time between two
events is taken, so that what is read while the GPU still computes counts as no wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from unigame.methods.findings import MIN_LOGS, Finding, Log
from unigame.system.say import warn
from unigame.training.config import UniGameConfig
from unigame.training.metrics import Meter

TOO_LONG = 0.2
"""Share of a step: above it a run is a quarter longer than it need be."""
LEAST_STEPS = 20
"""Steps after the first, which starts the loader's workers, before anything is said."""


class Waiting(TrainerCallback):
    """Times steps and their waiting; see the module docstring.

    Args:
        args: of the run.
    """

    def __init__(self, args: UniGameConfig) -> None:
        self.args = args
        self._cuda = args.device.type == "cuda"
        self._begun: float | None = None
        self._waits: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._steps: list[float] = []
        self._seen = [0.0, 0.0, 0.0]  # steps, their seconds, and those of waiting
        self._said = False

    @contextmanager
    def for_data(self) -> Iterator[None]:
        """Within, at the beginning of a step: its batches are read, and counted over the ranks."""
        self._begun = time.perf_counter()
        if not self._cuda:
            yield
            self._waits.append(time.perf_counter() - self._begun)
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._events.append((start, end))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step is done; what is logged, saved and evaluated after it is none of it."""
        if self._begun is not None:
            self._steps.append(time.perf_counter() - self._begun)
            self._begun = None

    def flush(self, meter: Meter) -> None:
        """Hand what was timed to ``meter``, warn once if it is too much, and start again."""
        if self._events:
            torch.cuda.synchronize()
            self._waits += [start.elapsed_time(end) / 1000 for start, end in self._events]
            self._events = []
        waited, passed = self._waits[: len(self._steps)], self._steps
        self._waits, self._steps = self._waits[len(passed) :], []
        if not passed:
            return
        meter.add("seconds_wait", sum(waited), len(waited))
        meter.add("wait_share", sum(waited), sum(passed))
        first = 0 if self._seen[0] else 1
        now = (len(passed), sum(passed[first:]), sum(waited[first:]))
        self._seen = [before + more for before, more in zip(self._seen, now, strict=True)]
        self._judge()

    def _judge(self) -> None:
        steps, seconds, waited = self._seen
        if self._said or steps <= LEAST_STEPS or waited <= TOO_LONG * seconds:
            return
        self._said = True
        if self.args.process_index == 0:
            warn(
                f"steps wait {waited / seconds:.0%} of their time for data ({waited / steps:.2g} "
                f"of {seconds / steps:.2g} s); {self._knob()}"
            )

    def _knob(self) -> str:
        workers, order = self.args.dataloader_num_workers, self.args.reading_order
        advice = f"raise dataloader_num_workers (now {workers})"
        if workers:
            advice += " or dataloader_prefetch_factor"
        if order != "shards":
            advice += "; for tars and tables on a slow disk, reading_order=shards"
        return advice

    def health(self, history: Sequence[dict[str, Any]]) -> list[Finding]:
        """Whether the run waited too long, by what it logged."""
        log = Log(history)
        late, seconds = log.late("wait_share"), log.late("seconds_wait")
        if len(log.values("wait_share")) < MIN_LOGS or late is None or late <= TOO_LONG:
            return []
        says = f"steps waited {late:.0%} of their time for data ({seconds:.2g} s each)"
        return [Finding("data too slow", says, self._knob(), {"wait_share": late})]
