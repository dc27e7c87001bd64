"""Questions about local images: a table, or VQAv2's own two files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unigame.data.dataset import RecordDataset, Row
from unigame.data.pairs import table_rows, texts_of
from unigame.data.paths import existing_path
from unigame.data.records import SkippedRow
from unigame.data.tables import read_json
from unigame.errors import UserError


class VQA(RecordDataset):
    """Questions about local images.

    Either VQAv2's own files, ``questions`` + ``annotations`` + ``images``, or ``path``: a json
    list, jsonl, csv or tsv of rows with image, question, and answer or answers (and caption, id,
    if there is one).

    Args:
        path: The table.
        questions: ``v2_OpenEnded_mscoco_train2014_questions.json`` or the like.
        annotations: ``v2_mscoco_train2014_annotations.json`` or the like.
        images: The image folder; of a table, by default the folder that holds it.
        image_pattern: Name of an image, from ``image_id``; by default COCO's own names, with the
            part that the questions file names: ``COCO_train2014_{image_id:012d}.jpg``.
        columns: Field to column, where a table's columns have unusual names.
        require_answers: Whether a question without an answer is an error.
        verify, limit: See :class:`RecordDataset`.

    Raises:
        UserError: A file is missing or malformed, a question has no answer, nothing is left.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        questions: str | Path | None = None,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        image_pattern: str | None = None,
        columns: Mapping[str, str] | None = None,
        require_answers: bool = True,
        verify: str = "exists",
        limit: int | None = None,
    ) -> None:
        if (path is None) == (questions is None):
            raise UserError(
                "vqa needs either path: (one table) or questions: + annotations: + images: "
                f"(VQAv2's files), got {'neither' if path is None else 'both'}"
            )
        if path is not None:
            if annotations is not None or image_pattern is not None:
                raise UserError(
                    "annotations: and image_pattern: go with questions:, not with path:"
                )
            where = existing_path(path, "path", folder=False)
            root = where.parent if images is None else existing_path(images, "images", folder=True)
            answered = [("answer", "answers")] if require_answers else []
            rows: Iterator[Row | SkippedRow] = table_rows(where, columns, ["question", *answered])
        else:
            if columns is not None:
                raise UserError("columns: goes with path:; VQAv2's own files have fixed names")
            if images is None:
                raise UserError("VQAv2's files need images: the folder with the COCO images")
            if annotations is None and require_answers:
                raise UserError("VQAv2's questions need annotations:, or require_answers: false")
            where = existing_path(questions, "questions", folder=False)
            root = existing_path(images, "images", folder=True)
            rows = _vqav2_rows(where, annotations, image_pattern, require_answers)
        super().__init__(
            rows, where=str(where), root=root, verify=verify, limit=limit, images_option=True
        )


def _vqav2_rows(
    questions: Path,
    annotations: str | Path | None,
    image_pattern: str | None,
    require_answers: bool,
) -> Iterator[Row]:
    asked = read_json(questions)
    name_of = _coco_names(asked, image_pattern)
    answered = {} if annotations is None else _annotations_by_question(annotations)
    names: dict[int, str] = {}  # several questions share an image, and then its name
    for number, item in enumerate(_list_of(asked, "questions", questions)):
        place = f"{questions} questions[{number}]"
        question_id, image_id = _whole(item, "question_id", place), _whole(item, "image_id", place)
        annotation = answered.get(question_id)
        if annotation is None and require_answers:
            raise UserError(
                f"{place}: question_id {question_id} is not in {annotations}; are both files of "
                "the same split? (require_answers: false keeps questions without answers)"
            )
        if annotation is not None and annotation.get("image_id", image_id) != image_id:
            raise UserError(
                f"{place}: question_id {question_id} has image_id {image_id}, but "
                f"{annotation['image_id']} in {annotations}; take both files of the same split"
            )
        texts = texts_of({**(annotation or {}), **item}, _VQAV2_FIELDS, place)
        for field in ("question", *(["answer"] if require_answers else [])):
            if texts[field] is None:
                raise UserError(f"{place} has no {field}; download the file again")
        image = names.setdefault(image_id, name_of.format(image_id=image_id))
        yield Row(id=str(question_id), image=image, **texts)


_VQAV2_FIELDS = {
    "question": "question",
    "answer": "multiple_choice_answer",
    "answers": "answers",
}


def _coco_names(asked: Any, image_pattern: str | None) -> str:
    """The pattern of the image names, tried on one id."""
    subset = asked.get("data_subtype", "train2014") if isinstance(asked, dict) else "train2014"
    # The test-dev questions are asked about the images of the test split.
    subset = str(subset).replace("test-dev", "test")
    pattern = image_pattern or f"COCO_{subset}_{{image_id:012d}}.jpg"
    try:
        names = {pattern.format(image_id=1), pattern.format(image_id=2)}
    except (AttributeError, KeyError, IndexError, ValueError) as error:
        raise UserError(f"image_pattern {pattern!r} is no pattern of image_id ({error})") from None
    if len(names) < 2:
        raise UserError(
            f"image_pattern {pattern!r} names the same file for every image; use e.g. "
            "COCO_train2014_{image_id:012d}.jpg"
        )
    return pattern


def _annotations_by_question(annotations: str | Path) -> dict[int, dict[str, Any]]:
    path = existing_path(annotations, "annotations", folder=False)
    found: dict[int, dict[str, Any]] = {}
    for number, item in enumerate(_list_of(read_json(path), "annotations", path)):
        place = f"{path} annotations[{number}]"
        question_id = _whole(item, "question_id", place)
        if found.setdefault(question_id, item) != item:
            raise UserError(
                f"{place}: question_id {question_id} has other answers than before in the same "
                "file; keep one of the two"
            )
    return found


def _list_of(content: Any, key: str, path: Path) -> list[Any]:
    items = content.get(key) if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise UserError(f'{path} has no list "{key}"; is this VQAv2\'s {key} file?')
    return items


def _whole(item: Any, key: str, place: str) -> int:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{place}: {key} is {value!r:.60}, but must be a whole number")
    return value
