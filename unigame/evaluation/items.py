"""From rows to items: bad rows are counted and left out, whichever benchmark they are of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from unigame.data import SkipReport
from unigame.data.images import MISSING
from unigame.data.pictures import TableCell
from unigame.errors import UserError
from unigame.evaluation.base import Item, Picture
from unigame.evaluation.source import BadRow, picture

Row = Mapping[str, Any]


def collect(
    rows: Iterable[Row],
    to_item: Callable[[Row], Item],
    *,
    where: str,
    limit: int | None = None,
    skips: SkipReport | None = None,
) -> tuple[list[Item], SkipReport]:
    """The items of the rows that can be used, in order, and a count of the others.

    Args:
        rows: as they were read.
        to_item: raises ``BadRow`` for a row that cannot be asked or scored.
        where: the file, folder or data set, for messages.
        limit: stop after so many items.
        skips: a report to add to; None: a new one.

    Raises:
        UserError: no row is left.
    """
    items: dict[str, Item] = {}
    skips = skips or SkipReport()
    for number, row in enumerate(rows):
        if limit is not None and len(items) >= limit:
            break
        place = f"{where} row {number}"
        try:
            item = to_item(row)
        except BadRow as bad:
            skips.add(place, bad.reason)
            continue
        if item.id in items:
            skips.add(place, "question_id occurs twice")
        else:
            items[item.id] = item
    skips.kept += len(items)
    if not items:
        raise UserError(
            f"{where} has no usable row ({skips.summary()}); is it the right data set, and its "
            "download complete?"
        )
    return list(items.values()), skips


def shown(row: Row, root: Path | None, column: str = "image") -> Picture:
    """The picture of a row; that it decodes is found out when it is asked for.

    Raises:
        BadRow: the cell is empty, or of a type that holds no picture.
    """
    cell = row.get(column)
    if cell is None:
        raise BadRow(MISSING)
    if not isinstance(cell, TableCell | Mapping | bytes | str | Path | Image.Image):
        raise BadRow(f"{column} is {type(cell).__name__}, expected a picture")
    return picture(cell, root)
