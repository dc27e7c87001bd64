"""Reading WISE's prompts, and making sure that it is the legacy set that they come from.

See ``task.py``. The repository's default is now WISE_Verified: other prompts under the same
numbers, another judge, other categories. Its scores are not comparable, so its files are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from unigame.data import SkipReport
from unigame.errors import UserError
from unigame.evaluation import source as rows_of
from unigame.evaluation.base import DatasetInfo, DataSource, Item, Loaded
from unigame.evaluation.tasks.wise.rules import CATEGORY_IDS, UNKNOWN_CATEGORY, category

HUB_ID: Final = "Yuwei-Niu/WISE"
LISTS: Final = (
    "cultural_common_sense.json",
    "spatio-temporal_reasoning.json",
    "natural_science.json",
)
COLUMNS: Final = ("Prompt", "Explanation", "prompt_id")
FOLDERS: Final = ("", "data", "WISE_legacy/data")  # where the lists lie in the repository
FIRST_PROMPT: Final = "Traditional food of the Mid-Autumn Festival"
PROMPTS_SHA256: Final = "c50f17a35c733f3ee8f2cae0b7b75e14ec89f156180bacfa5658cd3c26084621"
"""Of the 1,000 legacy prompts in the order of their ids, joined by newlines."""

FULL_SIZE: Final = sum(map(len, CATEGORY_IDS.values()))
SMALLEST_LIST: Final = 300

# The data's own names of the categories, in lower case.
_LABELS = {
    "cultural knowledge": "culture",
    "physical knowledge": "physics",
    **{name: name for name in CATEGORY_IDS},
}


def load_prompts(source: DataSource, limit: int | None = None) -> Loaded:
    """The prompts as items, in the data's order; their explanations are for the judge only.

    Raises:
        UserError: no such data, or WISE_Verified or rewritten prompts.
    """
    rows, info = _read(source)
    _refuse_verified(rows)
    items, skips = _items(rows)
    _check_first_prompt(items)
    items = items if limit is None else items[:limit]
    return Loaded(items, replace(info, fingerprint=rows_of.fingerprint(items)), skips)


# ---- reading the data ----------------------------------------------------------------------------


def _read(source: DataSource) -> tuple[Sequence[Mapping[str, Any]], DatasetInfo]:
    """Rows of the three lists where a folder has them, else of whatever table is there."""
    if source.root is not None:
        root = source.root.expanduser()
        for folder in FOLDERS:
            if found := [path for name in LISTS if (path := root / folder / name).is_file()]:
                info = DatasetInfo(id=root.name, split=source.split or "test")
                return [row for path in found for row in _list_of(path)], info
        if any(root.glob("*verified*")) and not any(root.glob("*.parquet")):
            raise UserError(
                f"{root} holds WISE_Verified, whose prompts and scores are others; the paper's "
                "WISE is in the folder WISE_legacy/data of the same repository"
            )
    rows = rows_of.read_rows(source, hub_id=HUB_ID, config=None, split="test", required=COLUMNS)
    return rows.rows, rows.info


def _list_of(path: Path) -> list[Mapping[str, Any]]:
    rows = rows_of.read_json(path)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} is not a list of prompts; download WISE_legacy/data again")
    return [row if isinstance(row, dict) else {} for row in rows]


def _items(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Item], SkipReport]:
    """Items of the usable rows; rows that are not are counted."""
    items: dict[str, Item] = {}
    skips = SkipReport()
    for number, row in enumerate(rows):
        try:
            item = _item(row)
            if item.id in items:
                raise rows_of.BadRow("prompt_id occurs twice")
        except rows_of.BadRow as error:
            skips.add(f"row {number}", error.reason)
        else:
            items[item.id] = item
    skips.kept = len(items)
    if not items:
        columns = ", ".join(dict.fromkeys(str(name) for row in rows for name in row)) or "none"
        raise UserError(
            f"no usable WISE prompt ({skips.summary()}); its columns are {columns}, but "
            f"{', '.join(COLUMNS)} are needed: is this the right data set?"
        )
    return list(items.values()), skips


def _item(row: Mapping[str, Any]) -> Item:
    prompt_id = rows_of.field(row, "prompt_id", int)
    prompt = rows_of.field(row, "Prompt", str)
    explanation = rows_of.field(row, "Explanation", str)
    if category(prompt_id) == UNKNOWN_CATEGORY:
        raise rows_of.BadRow("prompt_id is not between 1 and 1000")
    if not prompt.strip():
        raise rows_of.BadRow("empty Prompt")
    reference = {
        "explanation": explanation,
        "category": category(prompt_id),
        "subcategory": str(row.get("Subcategory") or ""),
    }
    return Item(id=str(prompt_id), prompt=prompt, reference=reference)


# ---- which WISE is this? -------------------------------------------------------------------------


def _refuse_verified(rows: Iterable[Mapping[str, Any]]) -> None:
    """Categories that contradict the legacy numbering: time ends at 567, in WISE_Verified at 520.

    With it, a full set has the legacy counts 400, 167, 133, 100, 100 and 100.
    """
    for row in rows:
        label = _LABELS.get(str(row.get("Category")).strip().lower())
        try:
            prompt_id = rows_of.field(row, "prompt_id", int)
        except rows_of.BadRow:
            continue
        if label and category(prompt_id) not in (label, UNKNOWN_CATEGORY):
            raise UserError(
                f"prompt {prompt_id} is of category {row['Category']!r}, but in legacy WISE it is "
                f"{category(prompt_id)}: this looks like WISE_Verified, whose scores are not "
                "comparable; use the files of WISE_legacy/data"
            )


def _check_first_prompt(items: Sequence[Item]) -> None:
    """A set as long as one of the lists must begin as legacy WISE does; small ones may be others'.

    The ``*_rewrite.json`` lists and WISE_Verified have another prompt 1.
    """
    first = next((item.prompt for item in items if item.id == "1"), FIRST_PROMPT)
    if first.strip() != FIRST_PROMPT and len(items) >= SMALLEST_LIST:
        raise UserError(
            f"prompt 1 is {first!r}, in legacy WISE it is {FIRST_PROMPT!r}: these are rewritten "
            "prompts or WISE_Verified, whose scores are not comparable; use WISE_legacy/data"
        )


def identity(items: Sequence[Item]) -> str:
    """Which prompts were drawn, for the record."""
    by_id = {int(item.id): item.prompt for item in items}
    if by_id.get(1, FIRST_PROMPT).strip() != FIRST_PROMPT:
        return "not WISE's prompts"
    if len(by_id) < FULL_SIZE:
        return "part of legacy WISE"
    text = "\n".join(by_id[id] for id in sorted(by_id))
    same = hashlib.sha256(text.encode()).hexdigest() == PROMPTS_SHA256
    return "legacy WISE" if same else "legacy WISE with changed prompts"
