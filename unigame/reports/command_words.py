"""A command that was typed, as words: options taken out of it, values changed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence


def split(command: str) -> list[str] | None:
    """The words of a command; None where its quotes do not close."""
    try:
        return shlex.split(command)
    except ValueError:
        return None


def rewritten(
    words: Sequence[str],
    *,
    drop: Callable[[str], bool],
    change: Callable[[str, str], str] = lambda key, value: value,
) -> list[str]:
    """The words without some options and their values, and with other values changed.

    Options are told apart as ``unigame train`` does: ``--key value``, ``--key=value`` or ``--key``
    alone, ``-`` and ``_`` meaning the same.

    Args:
        words: of a command.
        drop: whether an option goes, by its dotted key.
        change: takes a dotted key (empty: of a word of no option) and a value, and gives the new
            value.
    """
    kept: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            kept.append(change("", word))
            continue
        typed, sign, value = word.partition("=")
        key = typed[2:].replace("-", "_")
        follows = not sign and bool(rest) and not rest[0].startswith("--")
        if follows:
            value = rest.pop(0)
        if drop(key):
            continue
        if sign:
            kept.append(f"{typed}={change(key, value)}")
        elif follows:
            kept += [typed, change(key, value)]
        else:
            kept.append(typed)
    return kept
