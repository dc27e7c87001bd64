"""Processes of one run, forked from one that has imported everything: imports cost most of a start.

Whoever calls must not have computed anything with a model: threads do not survive a fork.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LIMIT_SECONDS = 300  # a hang is what these benchmarks look for


@dataclass
class Rank:
    """A process of a run, and where its words go."""

    pid: int
    said: Path
    code: int | None = None  # minus the signal, where one ended it
    computed: float = 0.0  # seconds of a core, in all; known when it has ended

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                self.computed = used.ru_utime + used.ru_stime
        return self.code is not None

    @property
    def computed_so_far(self) -> float:
        """Seconds of a core."""
        if self.poll():
            return self.computed
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def lines(self) -> list[str]:
        """What it wrote."""
        return self.said.read_text(errors="replace").splitlines()


def start(work: Callable[[], int | None], count: int, folder: Path) -> list[Rank]:
    """``work`` in so many connected processes, as a launcher starts them; 1 is alone.

    Args:
        work: its result is the exit code.
        count: how many processes.
        folder: takes a file of each one's words.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    ranks = []
    for number in range(count):
        said = folder / f"rank{number}.txt"
        pid = os.fork()
        if not pid:
            if count > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
                os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
            file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.exit(work())  # as any program ends: with its destructors
        ranks.append(Rank(pid, said))
    return ranks


def wait(ranks: list[Rank], limit: float = LIMIT_SECONDS) -> float:
    """Seconds until the last one has ended; what is left after ``limit`` is killed."""
    began = time.monotonic()
    while not all([rank.poll() for rank in ranks]):
        if time.monotonic() - began > limit:
            for rank in ranks:
                if not rank.poll():
                    os.kill(rank.pid, signal.SIGKILL)
        time.sleep(0.02)
    return time.monotonic() - began


def run(work: Callable[[], int | None], count: int, folder: Path, limit: float) -> float:
    """``start`` and ``wait``; the seconds it took.

    Raises:
        SystemExit: one of them failed, with the last lines that it wrote.
    """
    ranks = start(work, count, folder)
    seconds = wait(ranks, limit)
    for number, rank in enumerate(ranks):
        if rank.code:
            last = "\n".join(rank.lines[-20:])
            sys.exit(f"process {number} of {count} ended with code {rank.code}:\n{last}")
    return seconds
