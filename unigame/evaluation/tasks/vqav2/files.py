"""VQA's own files: questions and annotations in json, pictures under COCO's names.

    <root>/v2_OpenEnded_mscoco_val2014_questions.json
    <root>/v2_mscoco_val2014_annotations.json
    <root>/val2014/COCO_val2014_000000000042.jpg

The json files may also lie one folder deeper; so may the pictures, two folders deep at most, and
be named ``000000000042.jpg``, as COCO names them since 2017.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from unigame.data.paths import is_mac_file
from unigame.data.tables import MalformedRow
from unigame.errors import UserError
from unigame.evaluation.coco_pictures import CocoPictures
from unigame.evaluation.source import read_json

# Split -> how file names spell it, without hyphens.
_IN_NAMES = {"validation": "val", "test": "test(?!dev)"}


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
    pictures = CocoPictures(root, _subset_of(questions))
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
    found: dict[Any, dict[str, Any]] = {}
    for entry in _list_in(path, "annotations"):
        id = _id_of(entry)
        if id is not None and found.setdefault(id, entry) != entry:
            raise UserError(
                f"{path} has two annotations of question {id} that differ; keep one of them"
            )
    return found


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
    return sorted(path for path in found if path.is_file() and not is_mac_file(path.name))


def _subset_of(questions: Path) -> str | None:
    """COCO's split that a file of questions names, such as ``val2014``: whose pictures it means."""
    # The test-dev questions are asked about the pictures of the test split.
    found = re.search(r"(train|val|test)(?:-?dev)?(\d{4})", questions.name)
    return "".join(found.groups()) if found else None


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
