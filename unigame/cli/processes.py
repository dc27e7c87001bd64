"""The further processes of ``--processes N``: this command again, each with a number of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from unigame.system.threads import quota, usable_cores

GRACE = 10.0
"""Seconds that a process has to end before it is killed."""


def share_threads(count: int) -> None:
    """Let ``count`` processes on CPUs have no more threads together than there are cores.

    To be called before torch is imported. What the user has set stays.
    """
    cores = min(usable_cores(), quota() or usable_cores())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))


@contextmanager
def others(words: Sequence[str], count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Within: ranks 1 to ``count`` - 1 run ``unigame words``; afterwards none does.

    Args:
        words: of the command line.
        count: processes in all, this one included.
    """
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(1, count):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
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
