"""Columns of unusual names: the source that may read them, as a line to copy and correct."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from unigame.data.pairs import DEFAULT_COLUMNS
from unigame.data.pictures import looks_like_picture

YOURS = "YOUR_COLUMN"
"""Stands in the line for a column that nothing tells."""

_NAMES = {
    "image": ("picture", "pic", "photo", "img", "images", "pictures", "file"),
    "question": ("q", "query", "instruction", "prompt", "text"),
    "answer": ("a", "response", "reply", "output", "target", "label", "answers"),
    "caption": ("alt", "alt_text", "alttext", "description", "title"),
}
"""What people call the fields, beside the names by which they are found anyway."""

_CLOSE = 0.8


def likely_column(field: str, names: Sequence[str]) -> str | None:
    """The first column whose name means a field, or is a slip of the name that does."""
    for name in names:
        low = name.lower()
        known = DEFAULT_COLUMNS[field]
        if low in _NAMES[field] or difflib.get_close_matches(low, known, n=1, cutoff=_CLOSE):
            return name
    return None


def likely_question(fields: Mapping[str, str], free: Sequence[str]) -> str | None:
    """What may be the question: also a column that was taken for a caption, such as ``prompt``.

    Args:
        fields: the columns that are found by their names.
        free: the others.
    """
    caption = fields.get("caption")
    return caption if caption in _NAMES["question"] else likely_column("question", free)


def line_to_copy(
    options: Mapping[str, Any], first: Mapping[str, Any], fields: Mapping[str, str], table: bool
) -> str:
    """``--data '[{type: vqa, path: t.json, columns: {image: picture, question: q, answer: a}}]'``.

    Args:
        options: of the source: its path, and whether that is an id of the Hub.
        first: the cells of a row.
        fields: the columns that are found by their names.
        table: whether it is a text table, which has readers of its own.
    """
    columns: dict[str, str] = {}
    free = [name for name in first if name not in fields.values()]
    if "image" not in fields:
        shown = [name for name in free if looks_like_picture(first[name])]
        columns["image"] = next(iter(shown), None) or likely_column("image", free) or YOURS
    free = [name for name in free if name not in columns.values()]
    found: dict[str, str | None] = {}
    if "question" not in fields:
        found["question"] = likely_question(fields, free)
    if "answer" not in fields and "answers" not in fields:
        found["answer"] = likely_column("answer", free)
    kind = "vqa" if table else "hf"
    caption = likely_column("caption", free)
    if caption and not any(found.values()) and not fields.keys() & {"question", "answer"}:
        columns["caption"], kind = caption, "captions" if table else "hf"
    else:
        columns |= {field: name or YOURS for field, name in found.items()}
    image = first.get(columns.get("image", fields.get("image", "")))
    kind = "hf" if isinstance(image, list) else kind  # several pictures of a row
    source = {"type": kind, **options, **({"columns": columns} if columns else {})}
    written = yaml.safe_dump(
        [source], default_flow_style=True, sort_keys=False, allow_unicode=True, width=1_000_000
    )
    return f"--data {shlex.quote(written.strip())}"
