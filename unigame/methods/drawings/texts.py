"""Captions from a file, perhaps with questions and answers about what they describe.

    captions.txt      a caption a line
    captions.jsonl    {"caption": "a red ball", "questions": [{"question": ..., "answer": ...}]}
                      {"caption": "a red ball", "question": ..., "answer": ...}
    captions.json     a list of such objects

Rows of one caption are put together. No picture belongs to them: that is what they are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigame.errors import UserError
from unigame.settings.rules import shown
from unigame.system.json_text import decode_text, parse_json, text_lines

QA = tuple[str, str]
"""A question about what a caption describes, and its answer."""


@dataclass(frozen=True)
class Text:
    """A caption, and what it answers.

    Attributes:
        caption: to draw by.
        questions: with their answers; may be empty.
    """

    caption: str
    questions: tuple[QA, ...] = ()


def read_texts(path: str | Path, name: str = "texts") -> list[Text]:
    """The captions of a file, each once, in the order of the file.

    Args:
        path: the file.
        name: of the setting, for messages.

    Raises:
        UserError: the file is missing or malformed, or holds nothing; the line is named.
    """
    file = Path(path)
    found: dict[str, dict[QA, None]] = {}  # without doubles, in order
    for where, row in _rows(file, name):
        caption = _text(row, "caption", where)
        found.setdefault(caption, {}).update(dict.fromkeys(_questions(row, where)))
    if not found:
        raise UserError(f"{name}={str(path)!r} holds no caption; write one a line")
    return [Text(caption, tuple(questions)) for caption, questions in found.items()]


def read_lines(path: str | Path, name: str) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        UserError: the file is missing, no text, or empty.
    """
    lines = [line.strip() for line in text_lines(_content(Path(path), name))]
    if not any(lines):
        raise UserError(f"{name}={str(path)!r} is empty; write one a line")
    return [line for line in lines if line]


def digest(texts: list[Text]) -> str:
    """Which texts these are: 16 digits."""
    content = json.dumps([[text.caption, text.questions] for text in texts])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _content(file: Path, name: str) -> str:
    try:
        return decode_text(file.read_bytes())
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{name}={str(file)!r} cannot be read ({reason}); give a file") from None
    except ValueError:
        raise UserError(f"{name}={str(file)!r} is not UTF-8 text; convert it") from None


def _rows(file: Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each row stands, for messages, and the row."""
    content = _content(file, name)
    if file.suffix == ".txt":
        for number, line in enumerate(text_lines(content), start=1):
            if line.strip():
                yield f"{file}, line {number}", {"caption": line}
    elif file.suffix == ".json":
        rows = _parsed(content, str(file))
        if not isinstance(rows, list):
            raise UserError(f"{file} is no list; write a list of objects with a caption each")
        for number, row in enumerate(rows, start=1):
            yield _object(row, f"{file}, row {number}")
    elif file.suffix == ".jsonl":
        for number, line in enumerate(text_lines(content), start=1):
            if line.strip():
                where = f"{file}, line {number}"
                yield _object(_parsed(line, where), where)
    else:
        raise UserError(f"{name}={str(file)!r}: give a .txt, .json or .jsonl file")


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}); correct it") from None


def _object(row: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is {shown(row)}, no object with a caption; correct it")
    return where, row


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and key == "answer":
        value = str(value)  # a number of things, as people write it
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key} is {shown(value)}; give a text that is not empty")
    return value.strip()


def _questions(row: Mapping[str, Any], where: str) -> list[QA]:
    rows = row.get("questions") or []
    if not isinstance(rows, list) or not all(isinstance(one, Mapping) for one in rows):
        raise UserError(
            f'{where}: questions is {shown(rows)}; give a list of {{"question": .., "answer": ..}}'
        )
    if row.get("question") is not None:
        rows = [*rows, row]
    return [(_text(one, "question", where), _text(one, "answer", where)) for one in rows]
