"""How torch's threads on a CPU wait for each other, and how many they are. Imports no torch.

torch's kernels are cut into parts, one a thread, and the threads meet after each. By default a
thread that is done early spins: it asks again and again, so as to lose no time. On a machine that
does anything else as well, what it keeps busy is the core that the last thread is waiting for, and
a step of training, which is tens of thousands of such meetings, takes many times as long. A thread
that sleeps instead leaves its core to whoever has work; on an idle machine that costs little.

OpenMP reads these variables once, when torch is imported.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Whoever has set one of these has chosen how threads wait."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads sleep while they wait, and be no more than the container has cores.

    To be called before torch is imported; afterwards it does nothing. The command line calls it; a
    Python program may: ``from unigame.system.threads import share_cores; share_cores()``. What
    the user has set stays.
    """
    if "torch" in sys.modules:
        return
    if not any(name in environment for name in WAITING):
        environment["OMP_WAIT_POLICY"] = "passive"  # GNU's, LLVM's and Intel's OpenMP know it
    limit = quota()
    if limit is not None and limit < usable_cores():
        # torch counts the machine's cores, and does not know of a container's share of them.
        environment.setdefault("OMP_NUM_THREADS", str(limit))


def usable_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def quota(file: Path = _QUOTA) -> int | None:
    """Cores' worth of time that a container is granted, at least 1; None without a limit."""
    try:
        granted, period = file.read_text().split()
        return max(1, math.ceil(int(granted) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max 100000"
        return None
