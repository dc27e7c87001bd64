"""The table of data settings: what each key of a source takes, by its type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unigame.data.dataset import VERIFY
from unigame.settings.rules import Many, Number, OneOf, Rule, Switch, Table, Text, Whole, check_all

MOST = 2**31 - 1
_PATH = Text()
_PATH_OR_NONE = Text(optional=True)
_COLUMNS = Table(item=Text(), optional=True, help="Field to column: {image: picture}.")
_COMMON: dict[str, Rule] = {
    "type": Text(),
    "weight": Number(
        low=0, above=True, optional=True, help="Share of the mixture; all sources need one."
    ),
    "limit": Whole(low=1, high=MOST, optional=True, help="The first so many good rows."),
}
_FILES: dict[str, Rule] = {
    **_COMMON,
    "verify": Text(choices=VERIFY, help="What is checked of every picture before training."),
}
_PICTURE_ONLY = Switch(help="Whether rows of a picture without text are kept, for method reca.")
_OPENED: dict[str, Rule] = {
    **_FILES,
    "path": _PATH,
    "hub": Switch(help="Whether path is an id on the Hub."),
    "name": _PATH_OR_NONE,
    "split": Text(),
    "revision": _PATH_OR_NONE,
    "images": _PATH_OR_NONE,
    "cache_dir": _PATH_OR_NONE,
    "picture_only": _PICTURE_ONLY,
}
_TAGS = Table(
    item=Text(),
    keys=("user", "assistant", "system"),
    optional=True,
    help="What the data calls its speakers: {user: Q, assistant: A}.",
)
SOURCES: dict[str, dict[str, Rule]] = {
    "vqa": {
        **_FILES,
        "path": Text(optional=True, help="One table: json list, jsonl, csv or tsv."),
        "questions": Text(optional=True, help="VQAv2's questions file, instead of path."),
        "annotations": _PATH_OR_NONE,
        "images": Text(optional=True, help="Folder where the paths of pictures start."),
        "image_pattern": _PATH_OR_NONE,
        "columns": _COLUMNS,
        "require_answers": Switch(),
    },
    "captions": {**_FILES, "path": _PATH, "images": _PATH_OR_NONE, "columns": _COLUMNS},
    "webdataset": {
        **_FILES,
        "path": OneOf(rules=(Many(least=1), Text()), help="tar, folder, glob, {000..331}, or list"),
        "columns": _COLUMNS,
        "picture_only": _PICTURE_ONLY,
    },
    "pictures": {**_FILES, "path": Text(help="Folder or glob of pictures.")},
    "hf": {**_OPENED, "columns": _COLUMNS, "require_answers": Switch()},
    "chat": {
        **_OPENED,
        "tags": _TAGS,
        "fetch": Switch(help="Whether pictures behind links may be downloaded."),
        "turns": Text(choices=("context", "split"), help="Are earlier turns read?"),
    },
    "synthetic": {
        **_COMMON,
        "split": Text(),
        "size": Whole(low=1, high=10_000_000),
        "seed": Whole(low=0, high=2**32 - 1),
    },
}
# Two ways to name the rows of VQA. When one takes the place of the other, these keys go.
REPLACED: dict[str, tuple[str, ...]] = {
    "path": ("questions", "annotations", "image_pattern", "images", "columns"),
    "questions": ("path", "images", "columns"),
}
KEPT = ("weight",)  # when a source becomes one of another type


def check_values(source: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The values of one source, checked, without words; its type and keys are checked elsewhere.

    Raises:
        UserError: a value of the wrong type or outside its range, by name: ``data.0.weight``.
    """
    return check_all(source, SOURCES.get(str(source.get("type")), _COMMON), f"{place}.")


def change_source(source: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A source with the changes of a command line, without what they make void.

    Another type starts afresh: only the weight stays. A new ``path`` or ``questions`` drops what
    belonged to the old rows (their columns, the folder of their pictures).
    """
    kind = changes.get("type", source.get("type"))
    if kind != source.get("type"):
        source = {key: value for key, value in source.items() if key in KEPT}
    for new, old in (("path", "questions"), ("questions", "path")):
        if new in changes and old in source:
            source = {key: value for key, value in source.items() if key not in REPLACED[new]}
    return {**source, **changes}
