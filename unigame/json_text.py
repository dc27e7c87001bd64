"""JSON from a stranger's file: whatever is wrong with it is one ``ValueError`` of one line."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

_LONGEST_INTEGER = 300  # digits; a float holds 308


def parse_json(text: bytes, *, strict: bool = False) -> Any:
    """The content of a file.

    Args:
        text: its bytes, in UTF-8.
        strict: refuse also what the JSON standard does not allow or leaves open, and Python takes:
            NaN, numbers too large to be finite, and keys that occur twice in one object.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested too deeply; the message says which.
    """
    hooks: dict[str, Any] = {}
    if strict:
        hooks = {
            "parse_constant": _refuse,
            "parse_float": _finite,
            "parse_int": _finite_integer,
            "object_pairs_hook": _without_repeats,
        }
    try:
        return json.loads(text.decode("utf-8-sig"), **hooks)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text[:40])


def _finite_integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        _refuse(f"{text[:20]}...")
    return int(text)


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return found
