"""Rows of json, jsonl, csv and tsv files, and which column holds what."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigame.errors import UserError
from unigame.system.json_text import decode_text, parse_json

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
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path} is not valid json ({error}); was its download cut short?"
        ) from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be data; is it the right file?") from None


@dataclass(frozen=True, slots=True)
class BadLine:
    """Stands for a row that could not be read.

    Attributes:
        kind: the same for all rows with this fault, for counting.
        reason: what is wrong with this one.
        advice: what to do about it.
    """

    kind: str
    reason: str
    advice: str


def read_table(
    path: Path, headerless: Sequence[str] = (), kind: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a json list, jsonl, csv or tsv; place reads like ``data/pets.csv:3``.

    Args:
        path: The file.
        headerless: Column names for a csv or tsv whose first row names none of the known columns
            (CC3M's tsv has no header); without them a header is needed.
        kind: One of :data:`TABLE_SUFFIXES`; by default the file's own suffix tells the format.

    Raises:
        UserError: Unknown suffix, or a malformed row.
    """
    for place, row in scan_table(path, headerless, kind):
        if isinstance(row, BadLine):
            raise UserError(f"{place} {row.reason}; {row.advice}")
        yield place, row


def scan_table(
    path: Path, headerless: Sequence[str] = (), kind: str | None = None
) -> Iterator[tuple[str, dict[str, Any] | BadLine]]:
    """As :func:`read_table`, but a row that cannot be read is a :class:`BadLine` in its place.

    The one reader of tables: training, evaluation and the ``hf`` reader's csv all come here.

    Raises:
        UserError: Unknown suffix, or a file that is malformed as a whole.
    """
    suffix = kind or path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise UserError(f"{path}: unknown kind of file {suffix!r}; use {', '.join(TABLE_SUFFIXES)}")
    if suffix in (".json", ".jsonl"):
        return _json_rows(path) if _is_whole_json(path, suffix) else _jsonl_rows(path)
    return _csv_rows(path, "\t" if suffix == ".tsv" else ",", headerless)


def _is_whole_json(path: Path, suffix: str) -> bool:
    """One json value, rather than one object a line: the content says which, not the name."""
    with path.open("rb") as file:
        lines = (line.removeprefix(codecs.BOM_UTF8).strip() for line in file)
        first = next((line for line in lines if line), b"")
        if first.startswith(b"["):
            return True
        if suffix == ".jsonl":
            return False
        try:
            return not isinstance(parse_json(first), dict) or next(filter(None, lines), b"") == b""
        except (ValueError, RecursionError):
            return True


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | BadLine]]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(
            f"{path} holds a {type(rows).__name__}, but a list of rows is needed; for VQAv2's own "
            "json give questions:, annotations: and images: instead of path:"
        )
    for number, row in enumerate(rows):
        yield f"{path}[{number}]", _as_row(row)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | BadLine]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = _as_row(parse_json(line))
            except ValueError as error:
                row = BadLine("not valid json", f"is not valid json ({error})", "fix that line")
            yield f"{path}:{number}", row


def _as_row(row: object) -> dict[str, Any] | BadLine:
    if isinstance(row, dict):
        return row
    return BadLine(
        "row is not an object", f"is {row!r:.60}", "every row must be an object with named fields"
    )


def _csv_rows(
    path: Path, delimiter: str, headerless: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any] | BadLine]]:
    names: Sequence[str] | None = None
    for number, cells in split_cells(_table_text(path), delimiter):
        place = f"{path}:{number}"
        if names is None:
            has_header = not headerless or _is_header(cells, headerless)
            names = _header(cells, place) if has_header else headerless
            if has_header:
                continue
        if len(cells) == len(names):
            yield place, dict(zip(names, cells, strict=True))
        else:
            yield (
                place,
                BadLine(
                    "wrong number of cells",
                    f"has {len(cells)} cells where {len(names)} are needed ({', '.join(names)})",
                    "fix that line (quote commas in csv)",
                ),
            )


def _table_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return decode_text(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line} is malformed ({error}); save it as UTF-8, or was its download cut "
            "short?"
        ) from None


def _header(cells: Sequence[str], place: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(f"{place} names the column {name!r} twice; rename one of them")
    return names


def split_cells(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, cells) of the rows of a csv or tsv, without empty lines.

    A cell that is wholly in quotes is written as spreadsheets and pandas write it: it may hold
    delimiters and line breaks, and quotes written twice. Any other cell stands letter by letter,
    also one that has quotes somewhere (``"red" is a 5" thing``), as CC3M's tsv has them. Python's
    ``csv`` knows either the one or the other, and drops the quotes of such a cell.
    """
    # A cell that is not in quotes ends at the next delimiter or line end.
    mark = re.escape(delimiter)
    quoted = re.compile(rf'"([^"]*+(?:""[^"]*+)*+)"(?={mark}|[\r\n]|\Z)')
    bare = re.compile(rf"[^{mark}\r\n]*+")
    line_end = re.compile(r"\r\n?|\n" if "\r" in text else r"\n")
    position, line = 0, 1
    while position < len(text):
        end = line_end.search(text, position)
        stop = len(text) if end is None else end.start()
        lines = 1
        if text.find('"', position, stop) < 0:
            cells = text[position:stop].split(delimiter)
        else:
            cells, stop = _cells_with_quotes(text, position, delimiter, (quoted, bare))
            end = line_end.match(text, stop)
            lines += len(line_end.findall(text, position, stop))
        if cells != [""]:
            yield line, cells
        position = len(text) if end is None else end.end()
        line += lines


def _cells_with_quotes(
    text: str, position: int, delimiter: str, kinds: Sequence[re.Pattern[str]]
) -> tuple[list[str], int]:
    """The cells of the row that starts at ``position``, and where it ends."""
    quoted, bare = kinds
    cells: list[str] = []
    while True:
        whole = quoted.match(text, position)
        if whole is not None:
            cells.append(whole[1].replace('""', '"'))
        else:
            whole = bare.match(text, position)
            assert whole is not None, "an empty cell is a cell"
            cells.append(whole[0])
        position = whole.end()
        if not text.startswith(delimiter, position):
            return cells, position
        position += len(delimiter)


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
