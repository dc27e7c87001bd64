"""The rows of a dataset without their pictures, where that is cheap: to check texts in advance.

A dataset says them itself by ``iter_texts()``, as the readers here do. Lists, and data sets of the
`datasets` library, are known too, and what torch joins or cuts of such datasets. Of any other
dataset a row costs its picture; nothing is read of it here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import ConcatDataset, Subset

TEXT_FIELDS = ("question", "answer", "caption", "id", "num_images")


def peek_texts(dataset: Any) -> Iterator[Any] | None:
    """Every row, without its picture or with one that is at hand; None where that is not cheap.

    Rows come in order. A picture is at hand where the dataset is a list of rows.
    """
    if hasattr(dataset, "iter_texts"):
        return iter(dataset.iter_texts())
    if isinstance(dataset, list | tuple):
        return iter(dataset)
    if isinstance(dataset, ConcatDataset):
        return _joined(dataset)
    if isinstance(dataset, Subset):
        return _subset(dataset) if _has_every_row(dataset) else None
    if _is_table(dataset):
        columns = [name for name in TEXT_FIELDS if name in dataset.column_names]
        return iter(dataset.select_columns(columns)) if columns else None
    return None


def _joined(dataset: ConcatDataset[Any]) -> Iterator[Any]:
    """Parts that cannot be peeked at are left out."""
    return (row for part in dataset.datasets for row in peek_texts(part) or ())


def _subset(dataset: Subset[Any]) -> Iterator[Any]:
    kept = list(peek_texts(dataset.dataset) or ())
    return (kept[index] for index in dataset.indices)


def _has_every_row(dataset: Any) -> bool:
    """Whether row i of what is peeked at is row i of the dataset: no part of it is left out."""
    if isinstance(dataset, ConcatDataset):
        return all(_has_every_row(part) for part in dataset.datasets)
    if isinstance(dataset, Subset):
        return _has_every_row(dataset.dataset)
    return getattr(dataset, "texts_by_index", True) and peek_texts(dataset) is not None


def _is_table(dataset: Any) -> bool:
    """A ``datasets.Dataset`` whose rows are its columns: no function of the user makes them."""
    if not (hasattr(dataset, "select_columns") and hasattr(dataset, "column_names")):
        return False
    given = getattr(dataset, "format", None)
    return isinstance(given, Mapping) and given.get("type") is None
