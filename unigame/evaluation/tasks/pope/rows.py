"""POPE's layouts, read into rows with the columns of ``lmms-lab/POPE``.

On the Hub, or as local parquet: config ``default`` (one split ``test``, the subset in ``category``)
or ``Full`` (a split per subset). Or the original ``coco_pope_{subset}.json``, one object a line or
a list of them, with COCO's val2014 pictures beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from unigame.data import SkipReport
from unigame.data.tables import MalformedRow
from unigame.errors import UserError
from unigame.evaluation.base import DatasetInfo, DataSource
from unigame.evaluation.coco_pictures import CocoPictures
from unigame.evaluation.source import BadRow, Rows, field, read_rows, table_rows

SUBSETS = ("adversarial", "popular", "random")


def wanted_subsets(source: DataSource) -> tuple[str, ...]:
    """The subset that the source's split names, or all."""
    return (source.split,) if source.split in SUBSETS else SUBSETS


def read_pope(source: DataSource, hub_id: str) -> Rows:
    """The rows of a source, in any of the layouts.

    Raises:
        UserError: no data, or none of the layouts.
    """
    root = None if source.root is None else source.root.expanduser()
    if root is not None and (files := _original_files(root)):
        return _original(root, files)
    needed = ("question_id", "question", "answer", "image")
    read = partial(read_rows, hub_id=hub_id)
    if not _has_split_per_subset(source, root):
        whole = replace(source, split=None) if source.split in SUBSETS else source
        return read(whole, config=None, split="test", required=(*needed, "category"))
    subsets = wanted_subsets(source)
    parts = [
        read(replace(source, split=subset), config="Full", split=subset, required=needed)
        for subset in subsets
    ]
    rows = [
        {**row, "category": subset} if row else row
        for subset, part in zip(subsets, parts, strict=True)
        for row in part.rows
    ]
    return Rows(rows, replace(parts[0].info, split="+".join(subsets)), parts[0].root)


def _has_split_per_subset(source: DataSource, root: Path | None) -> bool:
    if root is None:
        return source.config == "Full" or (source.config is None and source.split in SUBSETS)
    return source.config == "Full" or any(
        next(root.glob(f"{folder}{subset}*"), None)
        for folder in ("", "data/", "Full/", "Full/data/")
        for subset in SUBSETS
    )


def _original_files(root: Path) -> dict[str, Path]:
    """POPE's own files by subset, in the folder itself or where its repository has them."""
    found: dict[str, Path] = {}
    for subset in SUBSETS:
        for folder in ("", "coco/", "output/coco/"):
            for suffix in ("json", "jsonl"):
                path = root / f"{folder}coco_pope_{subset}.{suffix}"
                if path.is_file():
                    found.setdefault(subset, path)
    return found


def _original(root: Path, files: Mapping[str, Path]) -> Rows:
    pictures = CocoPictures(root)
    rows: list[dict[str, Any]] = []
    for subset, path in files.items():
        for row in _rows(path):
            name = row.get("image")
            columns = {"question": row.get("text"), "answer": row.get("label")}
            place = {"image": pictures.by_name(name), "image_source": name, "category": subset}
            rows.append({**row, **columns, **place} if row else row)
    return Rows(rows, DatasetInfo(root.name, split="+".join(files)), root)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """One object a line, or a list of them, whatever the file is called."""
    for row in table_rows(path, ".jsonl"):
        yield MalformedRow("not a json object") if isinstance(row, MalformedRow) else row


def by_subset(
    rows: Iterable[dict[str, Any]], where: str, subsets: Sequence[str]
) -> tuple[dict[str, list[dict[str, Any]]], SkipReport]:
    """Rows of the wanted subsets; those that name none are counted.

    Raises:
        UserError: no row is left.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    skips = SkipReport()
    for number, row in enumerate(rows):
        try:
            subset = field(row, "category", str)
            if subset not in SUBSETS:
                raise BadRow(f"category is {subset!r}, expected {', '.join(SUBSETS)}")
        except BadRow as bad:
            skips.add(f"{where} row {number}", bad.reason)
            continue
        if subset in subsets:
            found.setdefault(subset, []).append(row)
    if not found:
        raise UserError(
            f"{where} has no row of {', '.join(subsets)} ({skips.summary()}); is it lmms-lab/POPE?"
        )
    return found, skips
