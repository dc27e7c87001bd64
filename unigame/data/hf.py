"""Data sets that the `datasets` library knows: local files and folders, and the Hub on request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from unigame.data.dataset import SEVERAL, RecordDataset, Row
from unigame.data.pairs import find_columns, lenient_row, texts_of
from unigame.data.pictures import TableCell
from unigame.data.records import SkippedRow
from unigame.data.rows import TableRows, open_rows, root_of
from unigame.data.stored_rows import StoredRows
from unigame.errors import UserError

_AS_TEXT = "cast the column to text; in json, put it in quotes"


class HFData(RecordDataset):
    """A data set that the ``datasets`` library finds, with questions or captions.

    Rows without text (a question with its answer, or a caption) are counted and left out.

    Args:
        path: A parquet, arrow, json, jsonl, csv or tsv file, a glob of such files, a folder of
            them, an image folder with metadata, a folder written by ``save_to_disk``, or, with
            ``hub``, the id of a data set on the Hub.
        hub: Whether ``path`` is a Hub id, which may be downloaded. Never assumed.
        name: Configuration of a data set that has several.
        split: The split; slices such as ``train[:1000]`` work where ``datasets`` knows them.
        revision: Branch, tag or commit on the Hub.
        columns: Field to column, where the columns have unusual names.
        images: Where relative image paths start, if the image column holds paths; by default the
            folder of the file.
        require_answers: Whether a question needs an answer to be kept.
        cache_dir: Where ``datasets`` keeps its arrow copy; by default its own cache. A csv or
            tsv has none: it is read as all tables here are, so that its text stays text.
        picture_only: Whether rows of a picture without text are kept; then no column of texts is
            needed.
        verify, limit: See :class:`RecordDataset`.

    Raises:
        UserError: No such data set, split or column, wrong types, nothing is left.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        hub: bool = False,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        columns: Mapping[str, str] | None = None,
        images: str | Path | None = None,
        require_answers: bool = True,
        cache_dir: str | Path | None = None,
        picture_only: bool = False,
        verify: str = "exists",
        limit: int | None = None,
    ) -> None:
        where = f"{path} ({split})"
        # With an answer mandatory, a column of answers is needed; otherwise a question will do.
        asked = "answer" if require_answers else "question"

        def rows() -> Iterator[Row | SkippedRow]:  # opened once the options below are checked
            found = open_rows(
                path, split, hub=hub, name=name, revision=revision, cache_dir=cache_dir
            )
            needs = ("image", *(() if picture_only else (("caption", asked, "answers"),)))
            fields = find_columns(found.columns, columns, required=needs, where=where)
            make = partial(_row, fields, where, require_answers, picture_only)
            if isinstance(found, TableRows):
                self._rows = StoredRows(found.only(fields.values()), make)
                yield from self._rows.all()
            else:
                yield from (make(number, cells) for number, cells in enumerate(found))

        self.picture_only = picture_only
        root = root_of(path, hub, images)
        super().__init__(
            rows(), where=where, root=root, verify=verify, limit=limit, images_option=True
        )


def _row(
    fields: dict[str, str],
    where: str,
    require_answers: bool,
    picture_only: bool,
    number: int,
    cells: Mapping[str, Any],
) -> Row | SkippedRow:
    given = cells.get(fields.get("id", ""))
    id = str(number if given is None else given)
    found = cells.get(fields["image"])
    images = found if isinstance(found, list) else [found]
    for image in images:
        if not isinstance(image, TableCell | Path | str | None):
            raise UserError(
                f"{where}: column {fields['image']!r} holds {type(image).__name__} "
                f"({image!r:.40}), but one image, its bytes or its path is needed; name the "
                "right column with columns: {image: <column>}"
            )
    first = images[0] if images else None
    texts = texts_of(cells, fields, f"{where} row {number}", _AS_TEXT)
    row = lenient_row(id, first, texts, "", require_answers, picture_only)
    return _with_all(row, images) if len(images) > 1 else row


def _with_all(row: Row | SkippedRow, images: Sequence[Any]) -> Row | SkippedRow:
    """An answer is learned from several pictures; none of them is what a caption says."""
    if isinstance(row, Row) and row.answer is None:
        return SkippedRow(row.id, SEVERAL, f"{len(images)} of them")
    return replace(row, images=tuple(images), caption=None) if isinstance(row, Row) else row
