"""What every benchmark does with its rows and replies: once, whichever benchmark they are of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from unigame.data import SkipReport
from unigame.data.images import MISSING
from unigame.data.pictures import TableCell
from unigame.errors import UserError
from unigame.evaluation.base import DatasetInfo, Item, Loaded, Picture, Prediction
from unigame.evaluation.source import BadRow, fingerprint, picture
from unigame.reports.metrics import Unit

Row = Mapping[str, Any]
T = TypeVar("T")


def collect(
    rows: Iterable[T],
    to_item: Callable[[T], Item],
    *,
    where: str,
    limit: int | None = None,
    skips: SkipReport | None = None,
    id: str = "question_id",
) -> tuple[list[Item], SkipReport]:
    """The items of the rows that can be used, in order, and a count of the others.

    Args:
        rows: as they were read.
        to_item: raises ``BadRow`` for a row that cannot be asked or scored.
        where: the file, folder or data set, for messages.
        limit: stop after so many items.
        skips: a report to add to; None: a new one.
        id: the column of ids, for messages.

    Raises:
        UserError: no row is left.
    """
    items: dict[str, Item] = {}
    skips = skips or SkipReport()
    for number, row in enumerate(rows):
        if limit is not None and len(items) >= limit:
            break
        try:
            item = to_item(row)
            if item.id in items:
                raise BadRow(f"{id} occurs twice")
        except BadRow as bad:
            skips.add(f"{where} row {number}", bad.reason, bad.detail)
        else:
            items[item.id] = item
    skips.kept += len(items)
    require(items, where, skips)
    return list(items.values()), skips


def require(items: object, where: str, skips: SkipReport, what: str = "row") -> None:
    """Raises a ``UserError`` where no row (or group, or question) could be used."""
    if not items:
        raise UserError(
            f"{where} has no usable {what} ({skips.summary()}); is it the right data set, and its "
            "download complete?"
        )


def loaded(items: list[Item], info: DatasetInfo, skips: SkipReport) -> Loaded:
    """What ``Benchmark.load`` returns, with the count and the fingerprint of the items."""
    skips.kept = len(items)
    return Loaded(items, replace(info, fingerprint=fingerprint(items)), skips)


def replies(
    items: Iterable[Item], predictions: Mapping[str, Prediction]
) -> Iterator[tuple[Item, str]]:
    """The items that have a reply, and what the model said."""
    for item in items:
        prediction = predictions.get(item.id)
        if prediction is not None and not prediction.error:
            yield item, prediction.text


def shares(outcomes: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of each group, in the order in which groups are first met."""
    groups: dict[str, list[float]] = {}
    for group, value in outcomes:
        groups.setdefault(group, []).append(value)
    return {group: sum(values) / len(values) for group, values in groups.items()}


def by_group(units: Iterable[Unit]) -> dict[str, tuple[Unit, ...]]:
    """Units of each group, in the order in which groups are first met."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.group, []).append(unit)
    return {group: tuple(of_group) for group, of_group in groups.items()}


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
