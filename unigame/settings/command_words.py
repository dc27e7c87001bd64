"""A command that was typed, as words: options taken out, values changed, secrets masked.

``about.json`` of a run, its model card and its page all show the command; which options are secret
is said here alone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence

MASK = "..."
_SECRETS = ("token", "password", "secret", "api_key")  # the last three in other people's scripts
_NAMES = "|".join(_SECRETS).replace("_", "[_-]")
_KEY = rf"""(?<![\w.-])[\w.-]*(?:{_NAMES})["']?\s*[:=]\s*"""
_VALUE = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,}\]]+)"""
# A secret inside of a value: of a mapping (--training '{hub_token: X}'), or of a word (token=X).
_INSIDE = re.compile(f"({_KEY}){_VALUE}", re.IGNORECASE)


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


def is_secret(key: str) -> bool:
    """Whether the value of an option or setting is nobody else's business, by its dotted key."""
    return key.replace("-", "_").lower().endswith(_SECRETS)


def masked(words: Sequence[str]) -> list[str]:
    """The words of a command with ``...`` in place of every secret, however it was typed."""
    return rewritten(words, drop=lambda key: False, change=_masked)


def _masked(key: str, value: str) -> str:
    return MASK if is_secret(key) else _INSIDE.sub(rf"\g<1>{MASK}", value)
