"""Captions of local images: a table, or a folder in which each image has its caption beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from unigame.data.dataset import NO_TEXT, SECOND_PICTURE, RecordDataset, Row
from unigame.data.images import IMAGE_SUFFIXES, MISSING
from unigame.data.pairs import table_rows
from unigame.data.paths import existing_path, is_mac_file
from unigame.data.records import SkippedRow
from unigame.errors import UserError
from unigame.system.json_text import decode_text, printable

TWO_CAPTIONS = "two captions of one name"


class Captions(RecordDataset):
    """Captions of local images.

    Args:
        path: A json list, jsonl, csv or tsv of image path and caption (csv and tsv with a header,
            or with exactly these two columns), or a folder, searched downward, in which every
            ``name.jpg`` has its caption in ``name.txt``.
        images: Where a table's relative image paths start; by default the folder that holds it.
        columns: Field to column, where a table's columns have unusual names.
        verify, limit: See :class:`RecordDataset`.

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
        where = existing_path(path, "path")
        if not where.is_dir():
            root = where.parent if images is None else existing_path(images, "images", folder=True)
            rows: Iterator[Row | SkippedRow] = table_rows(where, columns, ["caption"])
        elif images is None and columns is None:
            root, rows = where, _folder_rows(where)
        else:
            raise UserError("images: and columns: go with a table, but path: is a folder")
        super().__init__(
            rows,
            where=str(where),
            root=root,
            verify=verify,
            limit=limit,
            images_option=not where.is_dir(),
        )


def _folder_rows(folder: Path) -> Iterator[Row | SkippedRow]:
    """Files by their name without the suffix: ``a.jpg`` and ``a.PNG`` are one ``a``."""
    pictures: dict[Path, list[Path]] = {}
    texts: dict[Path, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not is_mac_file(file.relative_to(folder).as_posix()):
            kind = file.suffix.lower()
            found = pictures if kind in IMAGE_SUFFIXES else texts if kind == ".txt" else {}
            found.setdefault(file.with_suffix(""), []).append(file)
    for stem in sorted(pictures.keys() | texts.keys()):
        id = _id(stem, folder)
        shown, captions = pictures.get(stem, []), texts.get(stem, [])
        for other in shown[1:]:
            yield SkippedRow(_id(other, folder), SECOND_PICTURE, f"{shown[0]} has the same name")
        if not shown:
            yield SkippedRow(id, MISSING, f"no image beside {captions[0]}")
        elif len(captions) > 1:
            yield SkippedRow(id, TWO_CAPTIONS, " and ".join(map(str, captions)))
        elif not captions or not (caption := _caption_of(captions[0])):
            yield SkippedRow(id, NO_TEXT, f"no caption beside {shown[0]}")
        else:
            yield Row(id=id, image=str(shown[0].relative_to(folder)), caption=caption)


def _id(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder).as_posix())


def _caption_of(path: Path) -> str:
    try:
        return decode_text(path.read_bytes()).strip()
    except ValueError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); convert it") from None
