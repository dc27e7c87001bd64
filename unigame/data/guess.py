"""What a file, folder or Hub id holds, told from its first rows: the source that reads it."""

from __future__ import annotations

import glob
import itertools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from unigame.data.chat import READ, schema_of
from unigame.data.images import IMAGE_SUFFIXES
from unigame.data.likely import likely_question, line_to_copy
from unigame.data.pairs import find_columns
from unigame.data.paths import is_mac_file
from unigame.data.rows import BUILDERS, METADATA, Rows, TableRows, is_saved, open_rows
from unigame.data.tables import TABLE_SUFFIXES, read_table
from unigame.errors import UserError

FIRST_ROWS = 20
MOST_NAMED = 12
LOOKED_AT = 10_000
"""Files of a folder and the folders in it."""

TABLES = frozenset((*TABLE_SUFFIXES, *BUILDERS))
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
PACKED = (".gz", ".bz2", ".xz", ".zst")
DESCRIBED = (*METADATA, "metadata.parquet")
"""Tables that `datasets` reads beside the pictures of an image folder."""

_SHARDS = re.compile(r"\.tar(?:$|[.,*?\[{}\s])")
_SHOWN = frozenset(("image", "id"))


class Guess(NamedTuple):
    """A source as a recipe has it, and one line that says what was found."""

    source: dict[str, Any]
    said: str


def guess_source(text: str) -> Guess:
    """The source for what a user named: ``synthetic``, a path, a glob, shards or a Hub id.

    Of a Hub id that is no path here, the data set is downloaded.

    Raises:
        UserError: nothing is there, or its first rows are of no schema that is known.
    """
    if text == "synthetic":
        return Guess({"type": "synthetic"}, "synthetic is the built-in world")
    path = Path(text).expanduser()
    shards = {"type": "webdataset", "path": text}
    if _SHARDS.search(path.name) and not path.is_dir():
        return Guess(shards, f"{text} names shards: type: webdataset")
    if path.is_dir():
        return _guess_folder(text, path)
    if path.is_file() and (fix := _to_be_read(path)):
        raise UserError(f"{text} cannot be read; {fix}")
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        cells = (row for _, row in read_table(path))
        return _by_rows(text, cells, {"path": text}, table=True)
    if path.is_file() or any(letter in text for letter in "*?["):
        if _names_pictures(path):
            said = f"{text} names pictures without texts, for method reca: type: pictures"
            return Guess({"type": "pictures", "path": text}, said)
        return _by_rows(text, open_rows(text, "train", hub=False), {"path": text})
    owner, _, name = text.partition("/")
    if owner and name and "/" not in name and owner not in (".", "..", "~") and not path.suffix:
        rows = open_rows(text, "train", hub=True)
        return _by_rows(f"{text} (Hub)", rows, {"path": text, "hub": True})
    raise UserError(f"no data at {text!r}; check the path, or give a Hub id such as owner/name")


def _names_pictures(path: Path) -> bool:
    """Whether a file is a picture, or a glob names nothing else."""
    files = glob.glob(str(path), recursive=True)
    return bool(files) and all(Path(file).suffix.lower() in IMAGE_SUFFIXES for file in files)


def _guess_folder(text: str, folder: Path) -> Guess:
    if is_saved(folder):
        return _by_rows(text, open_rows(text, "train", hub=False), {"path": text})
    if any(folder.glob("*.tar")):
        return Guess({"type": "webdataset", "path": text}, f"{text} holds shards: type: webdataset")
    tables = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in TABLES]
    if len(tables) == 1 and tables[0].name not in DESCRIBED:
        return guess_source(str(Path(text) / tables[0].name))
    if tables:
        return _opened(text, folder, sorted(folder.iterdir()))
    within = list(itertools.islice(folder.rglob("*"), LOOKED_AT))
    if any(file.suffix in (".parquet", ".arrow") or file.name in METADATA for file in within):
        # As the Hub keeps data sets: data/train-00000.parquet, train/metadata.jsonl
        return _opened(text, folder, within)
    if shards := sorted({str(file.parent) for file in within if file.suffix == ".tar"}):
        raise UserError(f"{text} has its shards further down; give the folder {shards[0]}")
    return _of_pictures(text, folder, within)


def _opened(text: str, folder: Path, files: Iterable[Path]) -> Guess:
    """What `datasets` takes of the folder: where most files are pictures, it may be these alone."""
    rows = open_rows(text, "train", hub=False)
    tables = [file for file in _tables(folder, files) if file.name not in DESCRIBED]
    alone = _is_pictures_alone(rows)
    if alone:
        _require_no_table(text, folder, tables)
    guess = _by_rows(text, rows, {"path": text})
    described = any(file.name in DESCRIBED for file in files) and "file_name" not in rows.columns
    if alone or described:
        return guess._replace(said=guess.said + _passed_by(folder, tables))
    return guess


def _is_pictures_alone(rows: Rows) -> bool:
    """Whether `datasets` took a folder for one of pictures, of which no table tells anything."""
    if not isinstance(rows, TableRows) or not {"image", "label"}.issuperset(rows.columns):
        return False
    return bool(rows.table.builder_name == "imagefolder")


def _of_pictures(text: str, folder: Path, within: Sequence[Path]) -> Guess:
    """A folder without a table at its top: captions or pictures, unless a table lies further down.

    Args:
        text: the folder as it was named.
        folder: where it lies.
        within: the files in it that were looked at.
    """
    found = {file.suffix.lower() for file in within}
    said = f"{text} holds pictures with a caption in a text file beside each: type: captions"
    captions = Guess({"type": "captions", "path": text}, said)
    if _is_captioned(within):
        return captions._replace(said=said + _passed_by(folder, _tables(folder, within)))
    # All of a large folder: a table is one file among all its pictures.
    tables = _tables(folder, within if len(within) < LOOKED_AT else folder.rglob("*"))
    pictures = not found.isdisjoint(IMAGE_SUFFIXES)
    _require_no_table(text, folder, tables, pictures=pictures)
    if ".txt" in found:
        return captions
    if pictures:
        said = f"{text} holds pictures without texts, for method reca: type: pictures"
        return Guess({"type": "pictures", "path": text}, said + _passed_by(folder, tables))
    raise UserError(f"{text} holds no table, shard or picture; give the folder that does")


def _is_captioned(within: Sequence[Path]) -> bool:
    """Whether a text file has a picture of its name beside it, also one that was not looked at."""
    stems = {file.with_suffix("") for file in within if file.suffix.lower() in IMAGE_SUFFIXES}
    return any(
        file.with_suffix("") in stems or _is_beside_its_picture(file)
        for file in within
        if file.suffix.lower() == ".txt"
    )


def _is_beside_its_picture(file: Path) -> bool:
    """``a.txt`` or ``a.json`` beside ``a.png``: it tells of that picture, and is no table."""
    ends = [form for end in IMAGE_SUFFIXES for form in (end, end.upper())]
    kind = file.suffix.lower() in (".txt", ".json")
    return kind and any(file.with_suffix(end).is_file() for end in ends)


# ---- tables that are not read --------------------------------------------------------------------
def _tables(folder: Path, files: Iterable[Path]) -> list[Path]:
    """The tables among these files, readable or not; no hidden ones, such as a cache's."""
    found = []
    for file in files:
        name = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts) or is_mac_file(name.as_posix())
        if not hidden and (file.suffix.lower() in TABLES or _to_be_read(file)) and file.is_file():
            found.append(file)
    return sorted(found)


def _to_be_read(file: Path) -> str:
    """What makes a table of a kind that cannot be read one that can; empty for other files."""
    kind = file.suffix.lower()
    if kind in SPREADSHEETS:
        return f"export it as csv, and give --data {shlex.quote(str(file.with_suffix('.csv')))}"
    if kind in PACKED and Path(file.stem).suffix.lower() in TABLES:
        return f"unpack it, and give --data {shlex.quote(str(file.with_suffix('')))}"
    return ""


def _require_no_table(
    text: str, folder: Path, tables: Iterable[Path], *, pictures: bool = True
) -> None:
    """Refuse to pass a folder's tables by in silence; the json of a picture beside it is none.

    Args:
        text: the folder as it was named.
        folder: where it lies.
        tables: those in it.
        pictures: whether it has pictures, which may be what is meant.

    Raises:
        UserError: which tables there are, and how one is named.
    """
    told = [file for file in tables if not _is_beside_its_picture(file)]
    if not told:
        return
    source = [{"type": "pictures", "path": text}]
    dumped = yaml.safe_dump(
        source, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1_000_000
    )
    alone = f", or the pictures alone: --data {shlex.quote(dumped.strip())}" if pictures else ""
    readable = [file for file in told if not _to_be_read(file)]
    if not readable:
        fix = _to_be_read(Path(text) / told[0].relative_to(folder))
        raise UserError(f"{text} holds {_names(folder, told)}, which cannot be read; {fix}{alone}")
    names = [file.relative_to(folder).as_posix() for file in readable]
    named = Path(text) / next((name for name in names if "train" in name), names[0])
    raise UserError(
        f"{text} holds tables that would not be read ({_names(folder, told)}); name the one that "
        f"is meant, as in --data {shlex.quote(str(named))}{alone} (unigame data takes what stands "
        "after --data)"
    )


def _names(folder: Path, files: Sequence[Path]) -> str:
    shown = [file.relative_to(folder).as_posix() for file in files[:MOST_NAMED]]
    more = len(files) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _passed_by(folder: Path, tables: Sequence[Path]) -> str:
    """The tables of a folder that are passed by: one of them may be what was meant."""
    return f"; tables that are not read: {_names(folder, tables)}" if tables else ""


# ---- rows ----------------------------------------------------------------------------------------
def _by_rows(
    where: str, rows: Iterable[Mapping[str, Any]], options: dict[str, Any], table: bool = False
) -> Guess:
    """The source for these rows; ``table``: a text table, which has readers of its own."""
    first = list(itertools.islice(rows, FIRST_ROWS))
    names = list(dict.fromkeys(name for row in first for name in row))
    if not names:
        raise UserError(f"{where} holds no rows; was its download cut short?")
    schema = next((found for row in first if (found := schema_of(row))), None)
    if schema is not None:
        said = f"{where} holds {schema}: type: chat{_not_read(names, READ)}"
        return Guess({"type": "chat", **options}, said)
    fields = find_columns(names, None, where=where)
    answered = "answer" in fields or "answers" in fields
    if "question" in fields and answered:
        what, kind = "questions with answers", "vqa" if table else "hf"
    elif "caption" in fields and not answered:
        what, kind = "captions", "captions" if table else "hf"
        fields.pop("question", None)  # half a question is none
    elif "image" in fields and set(names) == {fields[key] for key in fields.keys() & _SHOWN}:
        said = f"{where} holds pictures (in {fields['image']!r}) without texts, for method reca"
        return Guess({"type": "hf", **options, "picture_only": True}, f"{said}: type: hf")
    else:
        what, kind = "", ""
    if not what or "image" not in fields:
        cells = {name: next((row[name] for row in first if name in row), None) for name in names}
        line = line_to_copy(options, cells, fields, table)
        lacks = f"{what} and no column of pictures" if what else _lacking(fields)
        raise UserError(
            f"{where} has {lacks} (its columns: {', '.join(names)}); {_name_it(fields, names)} in "
            f"{line} (unigame data takes the list alone)"
        )
    read = ", ".join(f"{field} in {column!r}" for field, column in fields.items())
    said = f"{where} holds {what} ({read}): type: {kind}{_not_read(names, fields.values())}"
    return Guess({"type": kind, **options}, said)


def _name_it(fields: Mapping[str, str], names: Sequence[str]) -> str:
    """What to do, up to the line to copy."""
    likely = likely_question(fields, [name for name in names if name not in fields.values()])
    if likely and "question" not in fields and ("answer" in fields or "answers" in fields):
        return f"is it {likely!r}? name it with columns: {{question: {likely}}}, as"
    return "name them as"


def _lacking(fields: Mapping[str, str]) -> str:
    """What there is and what is not, of rows that cannot be trained on as they are."""
    if "answer" in fields or "answers" in fields:
        return "answers and no column of questions"
    if "question" in fields:
        return "questions and no column of answers"
    return "no question with its answer, no caption and no conversation"


def _not_read(names: Sequence[str], read: Iterable[str]) -> str:
    """The columns that are passed by: one of them may be misspelled."""
    known = set(read)
    others = [name for name in names if name not in known]
    more = ", ..." if len(others) > MOST_NAMED else ""
    return f"; not read: {', '.join(others[:MOST_NAMED])}{more}" if others else ""
