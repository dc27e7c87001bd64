"""VQA's own files: questions and annotations in json, pictures under COCO's names.

    <root>/v2_OpenEnded_mscoco_val2014_questions.json
    <root>/v2_mscoco_val2014_annotations.json
    <root>/val2014/COCO_val2014_000000000042.jpg

The json files may also lie one folder deeper; so may the pictures, two folders deep at most, and
be named ``000000000042.jpg``, as COCO names them since 2017.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unigame.data.images import IMAGE_SUFFIXES
from unigame.errors import UserError
from unigame.evaluation.rowfiles import MalformedRow
from unigame.evaluation.source import read_json

_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?0*(\d+)")

# Split -> how file names spell it, without hyphens.
_IN_NAMES = {"validation": "val", "test": "test(?!dev)"}


class CocoPictures:
    """The pictures of a folder by file name or by COCO's image id.

    Raises:
        UserError: there are none.
    """

    def __init__(self, root: Path) -> None:
        self._by_name: dict[str, Path] = {}
        self._by_id: dict[int, Path] = {}
        for folder in _folders(root, depth=2):
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    self._by_name.setdefault(path.name, path)
                    if named := _COCO_NAME.fullmatch(path.stem):
                        self._by_id.setdefault(int(named.group(1)), path)
        if not self._by_name:
            raise UserError(
                f"{root} holds no pictures; put COCO's there, such as "
                "val2014/COCO_val2014_000000000042.jpg (a link to the folder will do)"
            )

    def by_id(self, image_id: Any) -> Path | None:
        """The picture with this id, in whatever COCO split it is."""
        return self._by_id.get(image_id) if isinstance(image_id, int) else None

    def by_name(self, name: Any) -> Path | None:
        """The picture with this file name, or with the COCO id in it, in whatever folder it is."""
        if not isinstance(name, str):
            return None
        named = _COCO_NAME.fullmatch(Path(name).stem)
        return self._by_name.get(Path(name).name) or (self.by_id(int(named[1])) if named else None)


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """The folder, and those within it; links to folders are followed, but never in a circle."""
    yield root
    if depth:
        for path in sorted(root.iterdir()):
            if path.is_dir():
                yield from _folders(path, depth - 1)


def has_vqa_files(root: Path) -> bool:
    """Whether a folder holds questions in VQA's own layout."""
    return bool(_files(root, "questions"))


def read_vqa_files(root: Path, split: str) -> list[dict[str, Any]]:
    """The questions of a split, each with its answers and picture, as rows of the Hub's columns.

    A question without an annotation, or one that contradicts it, becomes a ``MalformedRow``; one
    without a picture has None as its ``image``. Where a split has no annotations (test splits),
    rows lack ``answers``.

    Raises:
        UserError: no file for the split, several, one without its list, or files that do not
            belong together.
    """
    questions = _of_split(_files(root, "questions"), split, root)
    asked = _list_in(questions, "questions")
    annotations = _files(root, "annotations")
    if any(_is_of(path, split) for path in annotations):
        answered = _annotated(_of_split(annotations, split, root))
        if not any(_id_of(question) in answered for question in asked):
            raise UserError(
                f"no question of {questions.name} is annotated in {root}; "
                "take both files of the same split"
            )
    else:
        answered = None
    pictures = CocoPictures(root)
    return [_joined(question, answered, pictures) for question in asked]


def _joined(
    question: Any, answered: dict[Any, dict[str, Any]] | None, pictures: CocoPictures
) -> dict[str, Any]:
    if not isinstance(question, dict):
        return MalformedRow("question is not an object")
    row = dict(question)
    if answered is not None:
        annotation = answered.get(_id_of(question))
        if annotation is None:
            return MalformedRow("no annotation for the question")
        image_id = question.get("image_id")
        if annotation.get("image_id", image_id) != image_id:
            return MalformedRow("question and annotation have different image_id")
        row = {**annotation, **question}
    # None where it is not there: a submission names such a question, too.
    row["image"] = pictures.by_id(row.get("image_id"))
    return row


def _id_of(entry: Any) -> Any:
    """The question's id; None where it has none that could be looked up."""
    id = entry.get("question_id") if isinstance(entry, dict) else None
    return id if isinstance(id, int | str) else None


def _annotated(path: Path) -> dict[Any, dict[str, Any]]:
    entries = _list_in(path, "annotations")
    return {_id_of(entry): entry for entry in entries if _id_of(entry) is not None}


def _list_in(path: Path, key: str) -> list[Any]:
    content = read_json(path)
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f'{path} has no list "{key}"; is it VQA\'s file of {key}, downloaded whole?'
        )
    return entries


def _files(root: Path, what: str) -> list[Path]:
    found = [path for pattern in ("", "*/") for path in root.glob(f"{pattern}*{what}*.json")]
    return sorted(path for path in found if path.is_file())


def _is_of(path: Path, split: str) -> bool:
    """Whether a file is of the split, by its name; one that names no split may be of any."""
    name, split = path.name.replace("-", ""), split.replace("-", "")
    wanted = _IN_NAMES.get(split, re.escape(split))
    return bool(re.search(wanted, name)) or not re.search("train|val|test", name)


def _of_split(files: list[Path], split: str, root: Path) -> Path:
    chosen = [path for path in files if _is_of(path, split)]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(str(path.relative_to(root)) for path in chosen or files)
    if chosen:
        raise UserError(f"{root} holds several files of split {split!r}: {names}; keep one")
    raise UserError(f"{root} has no file of split {split!r}, only {names}; choose another --split")
