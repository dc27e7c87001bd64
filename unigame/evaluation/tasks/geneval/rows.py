"""Rows of GenEval's ``evaluation_metadata.jsonl``: checked, and cleaned of empty fields."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from unigame.evaluation.source import BadRow, field
from unigame.evaluation.tasks.geneval.rules import RELATIONS, TAGS

T = TypeVar("T")


def read_metadata(
    row: Mapping[str, Any], classes: Collection[str] | None, colours: Collection[str] | None
) -> dict[str, Any]:
    """A row as the rules take it: tag, prompt, include and, where there is one, exclude.

    Args:
        row: of the file.
        classes: what the detector can find; None: anything.
        colours: what the classifier can name; None: anything.

    Raises:
        BadRow: a field is missing or of another kind, or asks for what cannot be found.
    """
    tag, prompt = field(row, "tag", str), field(row, "prompt", str)
    if tag not in TAGS:
        raise BadRow(f"unknown tag {tag!r}")
    if not prompt.strip():
        raise BadRow("empty prompt")
    include = field(row, "include", list)
    if not include:
        raise BadRow("empty include")
    metadata = {
        "tag": tag,
        "prompt": prompt,
        "include": [_wanted(entry, place, classes, colours) for place, entry in enumerate(include)],
    }
    if row.get("exclude") is not None:
        metadata["exclude"] = [_object(entry, classes) for entry in field(row, "exclude", list)]
    return metadata


def _wanted(
    entry: Any, place: int, classes: Collection[str] | None, colours: Collection[str] | None
) -> dict[str, Any]:
    """One entry of ``include``; those before it may be its landmark."""
    wanted = _object(entry, classes)
    if entry.get("color") is not None:
        wanted["color"] = field(entry, "color", str)
        if colours is not None and wanted["color"] not in colours:
            raise BadRow("unknown color")
    if entry.get("position") is not None:
        wanted["position"] = _position(field(entry, "position", list), place)
    return wanted


def _object(entry: Any, classes: Collection[str] | None) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise BadRow("an object is no mapping")
    class_name, count = field(entry, "class", str), field(entry, "count", int)
    if classes is not None and class_name not in classes:
        raise BadRow("unknown class")
    if count < 1:
        raise BadRow("count below 1")
    return {"class": class_name, "count": count}


def _position(value: Sequence[Any], place: int) -> list[Any]:
    if len(value) != 2 or value[0] not in RELATIONS:
        raise BadRow("position is no [relation, landmark]")
    if type(value[1]) is not int or not 0 <= value[1] < place:
        raise BadRow("position refers to no earlier object")
    return list(value)


def spread(items: Sequence[T], limit: int | None, kind: Callable[[T], str]) -> list[T]:
    """At most ``limit`` items, the first of every kind, then the second..., in their own order."""
    if limit is None:
        return list(items)
    seen: dict[str, int] = {}
    ranks = []
    for index, item in enumerate(items):
        seen[kind(item)] = rank = seen.get(kind(item), 0) + 1
        ranks.append((rank, index))
    return [items[index] for index in sorted(index for _, index in sorted(ranks)[:limit])]
