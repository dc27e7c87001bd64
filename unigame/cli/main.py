"""The ``unigame`` command. Arguments are checked before anything heavy is imported.

What a user got wrong ends in one line on stderr and exit code 2, without a traceback; Ctrl-C,
SIGTERM and SIGHUP in one line that says what was kept, and exit code 128 + the signal's number (130
for Ctrl-C). Of several processes that meet the same mistake the first says it. Any other exception
is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from unigame.cli.app import app
from unigame.cli.endings import fault_line, lost_process, what_was_kept
from unigame.errors import OneProcessError, UserError
from unigame.system import signals

# isort: off
# Each module adds its command: this is their order in the list.
from unigame.cli import demo, data, train, compose, convert, generate, answer  # noqa: F401
from unigame.cli import evaluate, compare, report, merge, push, doctor, backbones  # noqa: F401
# isort: on

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` defaults to the process's arguments."""
    # A file's name or a reply may hold half a character: shown as an escape, and no traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with signals.raised():
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        except UserError as error:
            return _fail(str(error), every=isinstance(error, OneProcessError))
        except KeyboardInterrupt as error:
            if _is_first_process():
                print(f"\n{what_was_kept(error)}", file=sys.stderr)  # noqa: T201
            return 128 + error.signum if isinstance(error, signals.Stopped) else EXIT_INTERRUPTED
        except BrokenPipeError:
            # The reader (head, less) went away; point stdout at nothing so that exit stays quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_OK
        except Exception as error:
            line = fault_line(error)
            if line is None or os.environ.get("UNIGAME_TRACEBACK"):
                raise
            return _fail(f"{line}; {what_was_kept(error)}", every=lost_process(error))


def _run(words: list[str]) -> int:
    # Not `app(words)`: it takes Ctrl-C and a closed pipe for itself.
    try:
        with app.make_context("unigame", words, obj=tuple(words)) as context:
            return app.invoke(context) or EXIT_OK
    except click.exceptions.Exit as ending:  # --help and --version
        return ending.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "unigame"
        message = error.format_message().rstrip(".")
        raise UserError(f"{message}; `{path} --help` shows what it takes") from None


def _fail(message: str, *, every: bool = False) -> int:
    if every or _is_first_process():
        line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode("utf-8")
        print(f"unigame: error: {line}", file=sys.stderr)  # noqa: T201
    return EXIT_USER_ERROR


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # torchrun numbers the processes of a run
