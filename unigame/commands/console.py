"""Plain terminal output that works in a terminal, piped, and with NO_COLOR set."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def make_console(*, stderr: bool = False) -> Console:
    """A console for our own text: rich decides on colour from the terminal and NO_COLOR."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def next_step(*lines: str) -> None:
    """End a command by saying what to do now, one suggestion a line."""
    console = make_console()
    console.print(Text("\nNext:", style="bold"))
    for line in lines:
        console.print(Text(f"  {line}"))
