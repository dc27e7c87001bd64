"""Rows of json, jsonl, csv and tsv files as the files say them, each with the line it stands on."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unigame.data.images import IMAGE_SUFFIXES
from unigame.errors import UserError
from unigame.system.json_text import UTF16_MARKS, decode_text, parse_json, text_lines

TABLE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
PICTURE_FILE = re.compile(rf"[^\s\"]+(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})", re.I)
_DELIMITERS = {
    ",": "a csv is read with commas",
    "\t": "a tsv is read with tabs",
    ";": "",
    "|": "",
}
"""What may stand between cells, as people save tables; a file is read with the first or second."""


def read_json(path: Path) -> Any:
    """The content of a json file.

    Raises:
        UserError: No such file, not valid json, or not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; check the folder, or download it first")
    data = path.read_bytes()
    if not data.strip():
        raise UserError(f"{path} is empty, it holds no rows; was its download cut short?")
    try:
        return parse_json(data)
    except ValueError as error:
        place, advice = str(path), "was its download cut short?"
        if not_text := _not_text(data):
            place, advice = f"{path}:{not_text}", "save it as UTF-8, or was its download cut short?"
        elif (number := _half_letter(data)) is not None:
            place, advice = f"{path}[{number}]", "mend that row, or leave it out"
        raise UserError(f"{place} is not valid json ({error}); {advice}") from None


def _not_text(data: bytes) -> int:
    """The line of the first byte that is no UTF-8; 0: all of it is."""
    try:
        decode_text(data)
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1
    return 0


def _half_letter(data: bytes) -> int | None:
    """The number of the first row with half of a surrogate pair, which ``parse_json`` refuses."""
    try:
        rows = json.loads(decode_text(data))
    except (ValueError, RecursionError):
        return None
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return number
    return None


class MalformedRow(dict[str, Any]):
    """Stands for a row that could not be read: it has no columns, but a reason.

    Args:
        reason: the same for all rows with this fault, for counting.
        detail: what is wrong with this one.
        advice: what to do about it.
    """

    def __init__(self, reason: str, detail: str = "", advice: str = "") -> None:
        super().__init__()
        self.reason, self.detail, self.advice = reason, detail, advice


def read_table(
    path: Path,
    headerless: Sequence[str] = (),
    kind: str | None = None,
    known: Collection[str] = (),
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a json list, jsonl, csv or tsv; place reads like ``data/pets.csv:3``.

    Args:
        path: The file.
        headerless: Column names for a csv or tsv whose first row has as many cells and none that
            is in ``known`` (CC3M's tsv has no header); without them a header is needed.
        kind: One of :data:`TABLE_SUFFIXES`; by default the file's own suffix tells the format.
        known: Names that tell a header.

    Raises:
        UserError: Unknown suffix, or a malformed row.
    """
    for place, row in scan_table(path, headerless, kind, known):
        if isinstance(row, MalformedRow):
            raise UserError(f"{place} {row.detail}; {row.advice}")
        yield place, row


def scan_table(
    path: Path,
    headerless: Sequence[str] = (),
    kind: str | None = None,
    known: Collection[str] = (),
) -> Iterator[tuple[str, dict[str, Any]]]:
    """As :func:`read_table`, but a row that cannot be read is a :class:`MalformedRow` in its place.

    Raises:
        UserError: Unknown suffix, or a file that is malformed as a whole.
    """
    suffix = kind or path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise UserError(f"{path}: unknown kind of file {suffix!r}; use {', '.join(TABLE_SUFFIXES)}")
    if suffix in (".json", ".jsonl"):
        return _json_rows(path) if _is_whole_json(path, suffix) else _jsonl_rows(path)
    return _csv_rows(path, "\t" if suffix == ".tsv" else ",", headerless, known)


def _is_whole_json(path: Path, suffix: str) -> bool:
    """One json value, rather than one object a line: the content says which, not the name."""
    with _lines_of(path) as file:
        lines = (line.removeprefix(codecs.BOM_UTF8).strip() for line in file)
        first = next((line for line in lines if line), b"")
        if first.startswith(b"["):
            return True
        if suffix == ".jsonl":
            return False
        try:
            return not isinstance(parse_json(first), dict) or next(filter(None, lines), b"") == b""
        except ValueError:
            return True


@contextmanager
def _lines_of(path: Path) -> Iterator[Iterator[bytes]]:
    """Lines in UTF-8, read as they are asked for; of a file in UTF-16 they are made of the whole.

    Raises:
        UserError: it has the mark of UTF-16, and is none.
    """
    with path.open("rb") as file:
        marked = file.read(2) in UTF16_MARKS
        file.seek(0)
        yield iter(_table_text(path).encode().splitlines(keepends=True)) if marked else file


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(
            f"{path} holds a {type(rows).__name__}, but a list of rows is needed; {_list_in(rows)}"
        )
    for number, row in enumerate(rows):
        yield f"{path}[{number}]", _as_row(row)


def _list_in(content: Any) -> str:
    """What to do with a json that is no list of rows, and may hold one."""
    lists = content if isinstance(content, dict) else {}
    key = next((key for key, value in lists.items() if isinstance(value, list)), None)
    if key is None or key in ("questions", "annotations"):
        return "for VQAv2's own json give questions:, annotations: and images: instead of path:"
    return f"the list under {key!r} must stand alone: save it as a file of its own"


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _lines_of(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = _as_row(parse_json(line))
            except ValueError as error:
                said = f"is not valid json ({error})"
                row = MalformedRow("not valid json", said, "fix that line")
            yield f"{path}:{number}", row


def _as_row(row: object) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    return MalformedRow(
        "row is not an object", f"is {row!r:.60}", "every row must be an object with named fields"
    )


def _csv_rows(
    path: Path, delimiter: str, headerless: Sequence[str], known: Collection[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    names: Sequence[str] = ()
    for number, cells in split_cells(_table_text(path), delimiter):
        place = f"{path}:{number}"
        if not names:
            named = {cell.strip().lower() for cell in cells}.intersection(known)
            bare = len(cells) == len(headerless) and not named
            names = headerless if bare else _header(cells, place, delimiter)
            if not bare:
                continue
        if closed := _swallowed(cells, delimiter, number, len(names)):
            said = f"begins a cell with a quote that closes on line {closed}, behind other rows"
            fix = "close it there, or write the quote twice and the cell in quotes"
            yield place, MalformedRow("quote that is not closed", said, fix)
            continue
        if len(cells) == len(names):
            yield place, dict(zip(names, cells, strict=True))
            continue
        wrong = f"has {len(cells)} cells where {len(names)} are needed ({', '.join(names)})"
        advice = "fix that line (quote commas in csv)"
        yield place, MalformedRow("wrong number of cells", wrong, advice)


def _swallowed(cells: Sequence[str], delimiter: str, line: int, columns: int) -> int:
    """The line on which a quoted cell ends that holds whole rows; 0: none does, or none for sure.

    A line of it is a row where it has as many cells, and a picture's name in the place of one of
    this row's. With commas and two columns a line of text may look so, too.
    """
    places = [place for place, cell in enumerate(cells) if PICTURE_FILE.fullmatch(cell)]
    if delimiter != "\t" and columns < 3:
        return 0
    for cell in cells:
        inner = text_lines(cell)[1:]
        line += len(inner)
        for each in inner:
            parts = each.split(delimiter)
            alike = len(parts) == columns and any(PICTURE_FILE.fullmatch(parts[p]) for p in places)
            if alike:
                return line
    return 0


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


def _header(cells: Sequence[str], place: str, delimiter: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    others = [mark for mark in _DELIMITERS if mark != delimiter and mark in names[0]]
    if others and len(names) == 1:
        raise UserError(
            f"{place} is separated by {others[0]!r}, and {_DELIMITERS[delimiter]}; save it so"
        )
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
