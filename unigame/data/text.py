"""From bytes to text and json, where every fault of the file is one ``ValueError``."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def decode_text(data: bytes) -> str:
    """UTF-8, with or without a byte order mark, or the UTF-16 that Excel writes, which has one.

    Raises:
        ValueError: It is neither.
    """
    if data.startswith(_UTF16):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


def parse_json(data: bytes | str) -> Any:
    r"""The content of a json text.

    Raises:
        ValueError: It is not valid, not UTF-8, nested too deeply, or holds half of a surrogate
            pair (``"\ud83d"`` alone), which no file, tokenizer or terminal takes.
    """
    text = data if isinstance(data, str) else decode_text(data)
    try:
        content = json.loads(text)
        if _SURROGATE_ESCAPE.search(text):
            # Halves that belong together are one letter by now; only a lone one cannot be encoded.
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"lone surrogate \\u{ord(half):04x}, half of a letter") from None
    return content


def printable(text: str) -> str:
    """The same text; bytes of a file name that are not UTF-8 as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
