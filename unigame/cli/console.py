"""How commands end: what to do next."""

from __future__ import annotations

from rich.text import Text

from unigame.system.console import make_console

__all__ = ["make_console", "next_step"]


def next_step(*lines: str) -> None:
    """End a command by saying what to do now, one suggestion a line."""
    console = make_console()
    console.print(Text("\nNext:", style="bold"))
    for line in lines:
        console.print(Text(f"  {line}"))
