"""Rows of json, jsonl, csv and tsv files, and which column holds what."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unigame.errors import UserError

DEFAULT_COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("image", "image_path", "file_name", "filename", "path", "jpg", "jpeg", "png", "webp"),
    "question": ("question",),
    "answer": ("multiple_choice_answer", "answer"),
    "answers": ("answers",),
    "caption": ("caption", "text", "txt"),
    "id": ("question_id", "id"),
}
"""Names under which a field is looked for, the first present one wins."""

TABLE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")


def existing_path(value: object, option: str, *, folder: bool | None = None) -> Path:
    """A path that exists, with ``~`` expanded.

    Args:
        value: What the user wrote.
        option: The option's name, for the message.
        folder: Whether it must be a folder (True), a file (False) or either (None).

    Raises:
        UserError: It is no text, or no such file or folder exists.
    """
    if not isinstance(value, str | Path) or not str(value).strip():
        raise UserError(f"{option} must be a path, got {value!r}")
    path = Path(value).expanduser()
    if not path.exists():
        raise UserError(
            f"{option}: {path} does not exist; check the spelling, or download it first"
        )
    if folder is True and not path.is_dir():
        raise UserError(f"{option}: {path} is a file, but a folder is needed")
    if folder is False and path.is_dir():
        raise UserError(f"{option}: {path} is a folder, but a file is needed")
    return path


def read_json(path: Path) -> Any:
    """The content of a json file.

    Raises:
        UserError: It is not valid json, or not UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also JSONDecodeError and UnicodeDecodeError
        raise UserError(
            f"{path} is not valid json ({error}); was its download cut short?"
        ) from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be data; is it the right file?") from None


def read_table(path: Path, headerless: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a json list, jsonl, csv or tsv; place reads like ``data/pets.csv:3``.

    Args:
        path: The file; its suffix tells the format.
        headerless: Column names for a csv or tsv whose first row names none of the known columns
            (CC3M's tsv has no header); without them a header is needed.

    Raises:
        UserError: Unknown suffix, or a malformed row.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise UserError(f"{path}: unknown kind of file {suffix!r}; use {', '.join(TABLE_SUFFIXES)}")
    if suffix == ".json":
        return _json_rows(path)
    if suffix == ".jsonl":
        return _jsonl_rows(path)
    return _csv_rows(path, "\t" if suffix == ".tsv" else ",", headerless)


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(
            f"{path} holds a {type(rows).__name__}, but a list of rows is needed; for VQAv2's own "
            "json give questions:, annotations: and images: instead of path:"
        )
    for number, row in enumerate(rows):
        place = f"{path}[{number}]"
        yield place, _as_row(row, place)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:  # also JSONDecodeError and UnicodeDecodeError
                raise UserError(f"{place} is not valid json ({error}); fix that line") from None
            yield place, _as_row(row, place)


def _as_row(row: object, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(
            f"{place} is {row!r:.60}, but every row must be an object with named fields"
        )
    return row


def _csv_rows(
    path: Path, delimiter: str, headerless: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    # tsv files of captions do not quote: a lone quotation mark there is part of the caption.
    names: Sequence[str] | None = None
    with path.open(encoding="utf-8-sig", newline="") as file:
        if delimiter == "\t":
            reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(file, delimiter=delimiter)
        try:
            for cells in reader:
                if not cells:
                    continue
                if names is None:
                    has_header = not headerless or _is_header(cells, headerless)
                    names = [cell.strip() for cell in cells] if has_header else headerless
                    if has_header:
                        continue
                if len(cells) != len(names):
                    raise UserError(
                        f"{path}:{reader.line_num} has {len(cells)} cells where {len(names)} are "
                        f"needed ({', '.join(names)}); fix that line (quote commas in csv)"
                    )
                yield f"{path}:{reader.line_num}", dict(zip(names, cells, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}:{reader.line_num} is malformed ({error}); fix it") from None


def _is_header(cells: Sequence[str], headerless: Sequence[str]) -> bool:
    """A first row is a header unless it has just the headerless columns and no name we know."""
    known = {name for names in DEFAULT_COLUMNS.values() for name in names}
    return len(cells) != len(headerless) or any(cell.strip().lower() in known for cell in cells)


def resolve_columns(
    available: Iterable[str],
    chosen: Mapping[str, str] | None,
    *,
    required: Sequence[str | tuple[str, ...]],
    where: str,
) -> dict[str, str]:
    """Which column holds which field.

    Args:
        available: The columns there are.
        chosen: The user's mapping of field to column; the rest by :data:`DEFAULT_COLUMNS`.
        required: Fields that must be there; of a tuple of fields, one of them.
        where: The file or data set, for messages.

    Returns:
        Field to column, of the fields that are there.

    Raises:
        UserError: An unknown field or column in ``chosen``, or a required field without a column.
    """
    names = list(available)
    if chosen is not None and not isinstance(chosen, Mapping):
        raise UserError(f"columns must map fields to columns, got {chosen!r}")
    found = {
        field: next(name for name in defaults if name in names)
        for field, defaults in DEFAULT_COLUMNS.items()
        if any(name in names for name in defaults)
    }
    for field, column in (chosen or {}).items():
        if field not in DEFAULT_COLUMNS:
            raise UserError(
                f"columns: unknown field {field!r}; choose from {', '.join(DEFAULT_COLUMNS)}"
            )
        if column not in names:
            raise UserError(
                f"{where} has no column {column!r} for the {field}; it has {', '.join(names)}"
            )
        found[field] = column
    for need in required:
        fields = (need,) if isinstance(need, str) else need
        if not any(field in found for field in fields):
            raise UserError(_missing_column(names, fields, where))
    return found


def _missing_column(names: Sequence[str], fields: Sequence[str], where: str) -> str:
    message = f"{where} has no column for the {' or '.join(fields)} (it has {', '.join(names)})"
    if fields == ("image",) and any("url" in name.lower() for name in names):
        return f"{message}; it only links to images: download them first, as webdataset tars"
    return f"{message}; name it with columns: {{{fields[0]}: <column>}}"
