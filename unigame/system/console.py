"""Terminal output of our own text: what stands in it is text, never markup."""

from __future__ import annotations

from rich.console import Console


def make_console(*, stderr: bool = False) -> Console:
    """A console that prints texts as they are, in a terminal, piped, and with NO_COLOR set.

    Without markup and emoji codes: ``runs/[/foo]`` and ``runs/:fire:`` are folders. Styles are
    given by ``style=`` or ``rich.text.Text``.
    """
    return Console(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)
