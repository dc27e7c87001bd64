"""Text and JSON from a stranger's file: whatever is wrong is one ``ValueError`` of one line."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Sequence
from typing import Any

_LONGEST_INTEGER = 300  # digits; a float holds 308
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def decode_text(data: bytes) -> str:
    """UTF-8, with or without a byte order mark, or the UTF-16 that Excel writes, which has one.

    Raises:
        ValueError: it is neither.
    """
    if data.startswith(UTF16_MARKS):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


def text_lines(text: str) -> list[str]:
    r"""Lines as editors count them, which end at \n, \r\n or \r.

    ``str.splitlines`` also ends them at a form feed and at Unicode's separators, which may stand
    inside a sentence, and inside a JSON string.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def printable(text: str) -> str:
    """The same text; bytes of a file name that are not UTF-8 as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def parse_json(data: bytes | str, *, strict: bool = False) -> Any:
    r"""The content of a json text.

    Args:
        data: the text, or a file's bytes.
        strict: refuse also what the JSON standard does not allow or leaves open, and Python takes:
            NaN, numbers too large to be finite, and keys that occur twice in one object.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested too deeply, or holds half of a surrogate pair
            (``"\ud83d"`` alone), which no file, tokenizer or terminal takes.
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
        text = data if isinstance(data, str) else decode_text(data)
        content = json.loads(text, **hooks)
        if _SURROGATE_ESCAPE.search(text):
            # Halves that belong together are one letter by now; only a lone one cannot be encoded.
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"lone surrogate \\u{ord(half):04x}, half of a letter") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return content


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
