"""Local files: VQAv2's own json, tables of questions or captions, folders of image + text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unigame.data.images import IMAGE_SUFFIXES, MISSING
from unigame.data.reader import (
    NO_TEXT,
    SECOND_PICTURE,
    TWO_CAPTIONS,
    Reader,
    Row,
    check_options,
    texts_of,
)
from unigame.data.records import SkippedRow
from unigame.data.tables import existing_path, read_json, read_table, resolve_columns
from unigame.data.tars import is_mac_file
from unigame.errors import UserError
from unigame.system.json_text import decode_text, printable


class VQA(Reader):
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
        verify: See :class:`Reader`.
        limit: See :class:`Reader`.

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
        check_options(verify=verify, limit=limit)
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
            rows = _table_rows(where, images, columns, require_answers)
        else:
            if columns is not None:
                raise UserError("columns: goes with path:; VQAv2's own files have fixed names")
            where = existing_path(questions, "questions", folder=False)
            rows = _vqav2_rows(where, annotations, images, image_pattern, require_answers)
        super().__init__(rows, where=str(where), verify=verify, limit=limit)


class Captions(Reader):
    """Captions of local images.

    Args:
        path: A json list, jsonl, csv or tsv of image path and caption (csv and tsv with a header,
            or with exactly these two columns), or a folder, searched downward, in which every
            ``name.jpg`` has its caption in ``name.txt``.
        images: Where a table's relative image paths start; by default the folder that holds it.
        columns: Field to column, where a table's columns have unusual names.
        verify: See :class:`Reader`.
        limit: See :class:`Reader`.

    Raises:
        UserError: A file is missing or malformed, a caption is empty, nothing is left.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        images: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
        verify: str = "exists",
        limit: int | None = None,
    ) -> None:
        check_options(verify=verify, limit=limit)
        where = existing_path(path, "path")
        if where.is_dir():
            if images is not None or columns is not None:
                raise UserError("images: and columns: go with a table, but path: is a folder")
            rows = _folder_rows(where)
        else:
            rows = _table_rows(where, images, columns, require_answers=False, captions=True)
        super().__init__(rows, where=str(where), verify=verify, limit=limit)


def _table_rows(
    table: Path,
    images: str | Path | None,
    columns: Mapping[str, str] | None,
    require_answers: bool,
    captions: bool = False,
) -> Iterator[Row]:
    root = table.parent if images is None else existing_path(images, "images", folder=True)
    needed: tuple[str | tuple[str, ...], ...] = ("image", "caption")
    if not captions:
        needed = ("image", "question", *([("answer", "answers")] if require_answers else []))
    # Only for captions there is an agreed order of columns without a header.
    headerless = ("image", "caption") if captions and columns is None else ()
    for number, (place, cells) in enumerate(read_table(table, headerless)):
        fields = resolve_columns(cells, columns, required=needed, where=place)
        texts = texts_of(cells, fields, place)
        wanted = ["caption"] if captions else ["question", *(["answer"] if require_answers else [])]
        for field in wanted:
            if texts[field] is None:
                raise UserError(f"{place} has an empty {field}; fill it in, or drop the row")
        if captions:
            texts |= {"question": None, "answer": None, "answers": ()}
        yield Row(
            id=str(cells.get(fields.get("id", ""), number)),
            image=_image_path(root, cells[fields["image"]], place),
            **texts,
        )


def _image_path(root: Path, value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: image is {value!r:.60}, but must be the path of an image file")
    if re.match(r"https?://", value):
        raise UserError(
            f"{place}: image {value!r:.80} is a link; download the images first (webdataset tars)"
        )
    return os.path.join(root, value.strip())


def _folder_rows(folder: Path) -> Iterator[Row | SkippedRow]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in found if not is_mac_file(path.relative_to(folder).as_posix())]
    pictures = _by_stem(path for path in files if _is_image(path))
    texts = _by_stem(path for path in files if path.suffix.lower() == ".txt")
    for stem in sorted(pictures.keys() | texts.keys()):
        id = printable(stem.relative_to(folder).as_posix())
        shown, captions = pictures.get(stem, []), texts.get(stem, [])
        for other in shown[1:]:
            name = printable(other.relative_to(folder).as_posix())
            yield SkippedRow(name, SECOND_PICTURE, f"{shown[0]} has the same name")
        if not shown:
            yield SkippedRow(id, MISSING, f"no image beside {captions[0]}")
        elif len(captions) > 1:
            yield SkippedRow(id, TWO_CAPTIONS, " and ".join(map(str, captions)))
        elif not captions or not (caption := _caption_of(captions[0])):
            yield SkippedRow(id, NO_TEXT, f"no caption beside {shown[0]}")
        else:
            yield Row(id=id, image=str(shown[0]), caption=caption)


def _by_stem(files: Iterable[Path]) -> dict[Path, list[Path]]:
    """Files by their name without the suffix: ``a.jpg`` and ``a.PNG`` are one ``a``."""
    found: dict[Path, list[Path]] = {}
    for path in files:
        found.setdefault(path.with_suffix(""), []).append(path)
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _caption_of(path: Path) -> str:
    try:
        return decode_text(path.read_bytes()).strip()
    except ValueError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); convert it") from None


def _vqav2_rows(
    questions: Path,
    annotations: str | Path | None,
    images: str | Path | None,
    image_pattern: str | None,
    require_answers: bool,
) -> Iterator[Row]:
    if images is None:
        raise UserError("VQAv2's files need images: the folder with the COCO images")
    if annotations is None and require_answers:
        raise UserError("VQAv2's questions need annotations:, or require_answers: false")
    root = existing_path(images, "images", folder=True)
    asked = read_json(questions)
    name_of = _coco_names(asked, image_pattern)
    answered = {} if annotations is None else _annotations_by_question(annotations)
    paths: dict[int, str] = {}  # several questions share an image, and then its path
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
        if image_id not in paths:
            paths[image_id] = os.path.join(root, name_of.format(image_id=image_id))
        yield Row(id=str(question_id), image=paths[image_id], **texts)


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
