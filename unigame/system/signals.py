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
LATER, LONGEST_IMPORT = 0.05, 60.0  # seconds


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
    """Within: the signals raise :class:`Stopped`, after an import that is under way.

    Libraries turn an exception in the middle of their import into other ones, or lose it. One that
    still waits when the block ends is dropped: there is nothing left that it could stop.
    """
    waiting = _AfterImports()

    def stop(signum: int, frame: FrameType | None) -> None:
        if not waiting.put_off(signum, frame):
            raise Stopped(signum)

    with _handled(stop, SIGNALS):
        try:
            yield
        finally:
            waiting.cancel()


class _AfterImports:
    """Sends a signal again a little later, as long as modules are being imported."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._first = 0
        self._timer: threading.Timer | None = None

    def put_off(self, signum: int, frame: FrameType | None) -> bool:
        """Whether the signal will come again; not where a module runs on and on."""
        now = time.monotonic()
        self.cancel()
        if not _imports(frame) or now - (self._since or now) > LONGEST_IMPORT:
            self._since = None
            return False
        if self._since is None:  # the first of several says why it ends, as in `held`
            self._since, self._first = now, signum
        self._timer = threading.Timer(LATER, os.kill, (os.getpid(), self._first))
        self._timer.daemon = True
        self._timer.start()
        return True

    def cancel(self) -> None:
        """Send nothing any more."""
        if self._timer is not None:
            self._timer.cancel()


def _imports(frame: FrameType | None) -> bool:
    """Whether this frame runs within an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def held(told: str = "") -> Iterator[StopRequest]:
    """Within: the signals only ask. Whoever reads the request ends when it suits.

    Args:
        told: written to stderr when the first one comes; nothing if empty.
    """
    request = StopRequest()
    with _handled(lambda signum, frame: request.take(signum, told), SIGNALS):
        yield request


@contextmanager
def _handled(act: Callable[[int, FrameType | None], None], signals: Any) -> Iterator[None]:
    owner = os.getpid()

    def handle(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            act(signum, frame)
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
