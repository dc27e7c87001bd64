"""How a command ends: what to do next, what is on disk, and what went wrong with the machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unigame.errors import UserError
from unigame.system import signals

# What torch and safetensors say when a file cannot be written; they have no kind of error for it.
_WRITING = (
    "PytorchStreamWriter failed",
    "file write failed",
    "iostream error",
    "unexpected pos",
    "(os error ",
    "No space left on device",
)
# What torch says where another process of the run has gone; gloo's have no kind of error either.
_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
    "communicator was aborted",
    "Timed out waiting",
    "Socket Timeout",
)
_FIXES = {
    errno.ENOSPC: "the disk is full: free some space, or write to another one",
    errno.EDQUOT: "the quota is used up: free some space, or write to another disk",
    errno.EROFS: "the disk is read-only: write to another one",
    errno.EFBIG: "a file may not be that large here: see `ulimit -f`, or write to another disk",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.EACCES: "check whose it is and who may use it",
}


def next_step(*lines: str) -> None:
    """End a command by saying what to do now, one suggestion a line."""
    from rich.text import Text

    from unigame.system.console import make_console

    console = make_console()
    console.print(Text("\nNext:", style="bold"))
    for line in lines:
        console.print(Text(f"  {line}"))


def write_beside(folder: Path) -> None:
    """The page of a run that just ended. Its result is saved: a page that fails costs nothing."""
    from unigame.reports.page.write import write_report
    from unigame.system.console import make_console

    try:
        make_console().print(f"Report: {write_report([folder])}")
    except (UserError, OSError) as error:
        make_console(stderr=True).print(f"unigame: warning: no report was written: {error}")


@contextmanager
def kept(note: Callable[[], str]) -> Iterator[None]:
    """Within: a signal, or a fault of the machine, ends in the line that ``note`` gives.

    The line says what is on disk, and which command goes on from there.
    """
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, KeyboardInterrupt) or fault_line(error):
            # A fault of the machine may reach here too, and a launcher's SIGTERM: one line is said.
            with suppress(Exception), signals.held():
                error.add_note(note())
        raise


def what_was_kept(error: BaseException) -> str:
    """The line that ``kept`` has left with the error."""
    return " ".join(getattr(error, "__notes__", ["Stopped."]))


def fault_line(error: BaseException) -> str | None:
    """What went wrong with disk, memory or network, in one line; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f" {error.filename!r}" if error.filename is not None else ""
        advice = _FIXES.get(error.errno, "check the path and the disk")
        return f"{error.strerror or type(error).__name__}:{where} ({advice})"
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[error.start : error.end]!r} cannot be written as {error.encoding}"
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if kind == "OutOfMemoryError" or isinstance(error, MemoryError):
        return (
            f"out of memory ({text.partition('. ')[0] or kind}); lower the batch size, "
            "challenge_micro_batch, or draw_batch of verify and imagine, or set "
            "gradient_checkpointing"
        )
    if lost_process(error):
        return (
            f"process {os.environ['RANK']} lost another one of the run, which was killed, crashed "
            f"or has no network any more; look for what that one said ({text[:120]})"
        )
    if kind in ("RuntimeError", "SafetensorError") and any(word in text for word in _WRITING):
        return f"a file could not be written, as on a full or read-only disk ({text[:200]})"
    return None


def lost_process(error: BaseException) -> bool:
    """Whether another process of this run has gone. Each of the others finds that out by itself."""
    kind = type(error).__name__
    if "RANK" not in os.environ or not kind.startswith(("Dist", "RuntimeError")):
        return False
    return kind.startswith("Dist") or any(word in str(error) for word in _GONE)
