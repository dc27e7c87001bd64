"""Unequal passes: every process runs equally many of each kind, in one order."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from unigame.training.in_step import InStep, Pass


class Total:
    """The sum over threads, each of which plays a process."""

    def __init__(self, processes: int) -> None:
        self.barrier = threading.Barrier(processes, timeout=10)
        self.sum = torch.zeros(())
        self.lock = threading.Lock()

    def __call__(self, wishes: Tensor) -> Tensor:
        if self.barrier.wait() == 0:
            self.sum = torch.zeros_like(wishes)
        self.barrier.wait()
        with self.lock:
            self.sum = self.sum + wishes
        self.barrier.wait()
        return self.sum.clone()


class Part(nn.Module):
    """Notes who ran it: an idle pass, or one that was wanted."""

    def __init__(self, name: str, runs: list[str]) -> None:
        super().__init__()
        self.name, self.runs = name, runs

    def forward(self, wanted: bool) -> None:
        self.runs.append(self.name if wanted else self.name.lower())


def played(*works: Callable[[nn.Module, nn.Module], object]) -> tuple[list[str], list[int]]:
    """What each process ran, in order (A and B are wanted, a and b idle), and which ones failed."""
    total, runs = Total(len(works)), [[] for _ in works]
    failed: list[int] = []

    def process(number: int) -> None:
        first, second = Part("A", runs[number]), Part("B", runs[number])
        passes = [Pass(part, lambda part=part: part(False)) for part in (first, second)]
        in_step = InStep(passes, total)
        try:
            with in_step():
                works[number](first, second)
        except ZeroDivisionError:
            failed.append(number)
        first(True)  # outside, where passes are equal by themselves

    threads = [threading.Thread(target=process, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    return ["".join(own) for own in runs], failed


def test_who_has_no_pass_runs_idle_ones() -> None:
    def busy(first: nn.Module, second: nn.Module) -> None:
        first(True)
        first(True)
        second(True)

    found, _ = played(busy, lambda first, second: first(True), lambda *_: None)
    assert found == ["AABA", "AabA", "aabA"]


def test_kinds_keep_one_order_whoever_wants_which() -> None:
    def one(first: nn.Module, second: nn.Module) -> None:
        second(True)
        first(True)

    def other(first: nn.Module, second: nn.Module) -> None:
        first(True)
        second(True)

    (mine, others), _ = played(one, other)
    assert mine.lower() == others.lower()
    assert [text.count("A") + text.count("B") for text in (mine, others)] == [3, 3]


def test_who_fails_still_lets_the_others_finish() -> None:
    def fails(first: nn.Module, second: nn.Module) -> None:
        first(True)
        raise ZeroDivisionError

    def works(first: nn.Module, second: nn.Module) -> None:
        for _ in range(3):
            first(True)

    assert played(fails, works) == (["AaaA", "AAAA"], [0])
