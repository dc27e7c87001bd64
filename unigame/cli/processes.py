"""The further processes of ``--processes N``: this command again, each with a number of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from unigame.errors import UserError
from unigame.system.threads import quota, usable_cores

if TYPE_CHECKING:
    from unigame.evaluation.ranks import Ranks

GRACE = 10.0
"""Seconds that a process has to end before it is killed."""


def share_threads(count: int) -> None:
    """Let ``count`` processes on CPUs have no more threads together than there are cores.

    To be called before torch is imported. What the user has set stays.
    """
    cores = min(usable_cores(), quota() or usable_cores())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))


def ranks_of(asked: int | None) -> tuple[Ranks, int]:
    """Which of the processes this is: of a launcher's, or of those that it is about to start.

    Args:
        asked: what ``--processes`` says.

    Returns:
        Its number, and how many processes it has to start, itself included: 1 means no more.

    Raises:
        UserError: a launcher that started another number of processes than ``--processes``.
    """
    if (asked or 1) > 1:
        share_threads(asked or 1)
    from unigame.evaluation.ranks import Ranks, launched_ranks

    ranks = launched_ranks()
    if asked is None or asked == ranks.count:
        return ranks, 1  # they are all there
    if ranks.count > 1:
        raise UserError(
            f"--processes {asked} under a launcher of {ranks.count} processes; leave "
            "--processes out"
        )
    return Ranks(0, asked), asked


@contextmanager
def others(
    words: Sequence[str], count: int, *, of: int | None = None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Within: ranks 1 to ``count`` - 1 run ``unigame words``; afterwards none does.

    Args:
        words: of the command line.
        count: processes in all, this one included.
        of: how many they are told that there are, where some would have nothing to do.
    """
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(1, count):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": of or count}
            numbers["LOCAL_WORLD_SIZE"] = count
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "unigame", *words],
                    env=os.environ | {name: str(value) for name, value in numbers.items()},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # the first process has the word
                )
            )
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ended(started: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """The ranks that run no more, whatever came of them."""
    return [rank for rank, process in enumerate(started, start=1) if process.poll() is not None]


def lost(started: Sequence[subprocess.Popen[bytes]]) -> list[str]:
    """Which of them failed, in words."""
    codes = ((rank, process.poll()) for rank, process in enumerate(started, start=1))
    return [
        f"process {rank} was killed by signal {-code}"
        if code < 0
        else f"process {rank} ended with exit code {code}"
        for rank, code in codes
        if code
    ]


def say_lost(failed: Sequence[str], ending: str) -> None:
    """A line on stderr for each process that is gone, which ends with what became of its work."""
    from unigame.system.console import make_console

    for line in failed:
        make_console(stderr=True).print(f"unigame: warning: {line}; {ending}")
