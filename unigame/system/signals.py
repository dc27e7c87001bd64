"""Ctrl-C, SIGTERM and SIGHUP end a command alike: in order, and saying what was kept.

Schedulers send SIGTERM and wait some seconds before they kill; a terminal that closes sends
SIGHUP. Python would end without a word on both. A signal that the caller had ignored (``nohup``)
stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
AGAIN_AFTER = 1.0  # seconds: a terminal and torchrun may both deliver the same Ctrl-C


class Stopped(KeyboardInterrupt):
    """The process was asked to end by ``signum``."""

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopRequest:
    """Which signal asked for the end, if any has."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._since = 0.0

    def __bool__(self) -> bool:
        return self.signum is not None

    def take(self, signum: int, told: str = "") -> None:
        """Note the first signal; a second Ctrl-C, unless it is an echo, ends at once.

        Raises:
            Stopped: the second Ctrl-C.
        """
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._since = signum, now
            if told:  # print() may not be entered twice, which a signal can bring about
                os.write(2, f"\n{signal.Signals(signum).name}: {told}\n".encode())
        elif signum == signal.SIGINT and now - self._since > AGAIN_AFTER:
            raise Stopped(signum)


@contextmanager
def raised() -> Iterator[None]:
    """Within: SIGTERM and SIGHUP raise :class:`Stopped`, as Ctrl-C raises KeyboardInterrupt."""

    def stop(signum: int) -> None:
        raise Stopped(signum)

    with _handled(stop, [one for one in SIGNALS if one != signal.SIGINT]):
        yield


@contextmanager
def held(told: str = "") -> Iterator[StopRequest]:
    """Within: the signals only ask. Whoever reads the request ends when it suits.

    Args:
        told: written to stderr when the first one comes; nothing if empty.
    """
    request = StopRequest()
    with _handled(lambda signum: request.take(signum, told), SIGNALS):
        yield request


@contextmanager
def _handled(act: Callable[[int], None], signals: Any) -> Iterator[None]:
    owner = os.getpid()

    def handle(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            act(signum)
        elif signum == signal.SIGTERM:  # a worker of ours: its owner ends it by this
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    before = {}
    if threading.current_thread() is threading.main_thread():  # others cannot set handlers
        for one in signals:
            if signal.getsignal(one) not in (signal.SIG_IGN, None):
                before[one] = signal.signal(one, handle)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
