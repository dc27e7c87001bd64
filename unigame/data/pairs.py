"""The schema of most data: a picture with a question and its answers, a caption, or both.

A schema is a function from one row of a source to a :class:`Row`; this one serves tables, data sets
of `datasets` and the json of webdataset tars.
"""

from __future__ import annotations

import ast
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unigame.data.chat import MARKS
from unigame.data.dataset import NO_TEXT, Row
from unigame.data.images import IMAGE_COLUMNS
from unigame.data.records import SkippedRow, most_common_answer
from unigame.data.tables import read_table
from unigame.errors import UserError
from unigame.system.json_text import parse_json

DEFAULT_COLUMNS: dict[str, tuple[str, ...]] = {
    "image": IMAGE_COLUMNS,
    "question": ("question",),
    "answer": ("multiple_choice_answer", "answer"),
    "answers": ("answers",),
    "caption": ("caption", "text", "txt", "prompt", "captions"),
    "id": ("question_id", "id"),
}
"""Names under which a field is looked for, the first present one wins."""

_KNOWN = frozenset(name for names in DEFAULT_COLUMNS.values() for name in names)
_ASKED = frozenset(("question", "answer", "answers"))
_PREFERENCES = frozenset(("chosen", "rejected"))
_TEXTS = (*_ASKED, "caption")
IN_QUOTES = "put it in quotes"
NO_QUESTION: dict[str, Any] = {"question": None, "answer": None, "answers": ()}


def find_columns(
    available: Iterable[str],
    chosen: Mapping[str, str] | None,
    *,
    required: Sequence[str | tuple[str, ...]] = (),
    where: str,
) -> dict[str, str]:
    """Which column holds which field, of the fields that are there.

    Args:
        available: The columns there are.
        chosen: The user's mapping of field to column; the rest by :data:`DEFAULT_COLUMNS`.
        required: Fields that must be there; of a tuple of fields, one of them.
        where: The file or data set, for messages.

    Raises:
        UserError: An unknown field or column in ``chosen``, or a required field without a column.
    """
    names = list(available)
    given = check_fields(chosen)
    named = {column for field, column in given.items() if field in _TEXTS}
    found: dict[str, str] = {}
    for field, defaults in DEFAULT_COLUMNS.items():
        # A question that is named so is no caption too, whatever its column is called.
        taken = named if field in _TEXTS else ()
        free = [name for name in defaults if name in names and name not in taken]
        found |= {field: free[0]} if free else {}
    for field, column in given.items():
        if column not in names:
            raise UserError(
                f"{where} has no column {column!r} for the {field}; it has {', '.join(names)}"
            )
        found[field] = column
    if found.get("caption") == "prompt" and "caption" not in given:
        # Beside a question it may be anything, beside answers it is one.
        if _ASKED & found.keys() or _PREFERENCES.intersection(names) - {*given.values()}:
            del found["caption"]
    for need in required:
        fields = (need,) if isinstance(need, str) else need
        if not found.keys() & set(fields):
            free = [name for name in names if name not in found.values()]
            raise UserError(_missing_column(names, free, fields, where))
    return found


def check_fields(chosen: Mapping[str, str] | None) -> Mapping[str, str]:
    """The user's mapping of field to column.

    Raises:
        UserError: It is none, or maps an unknown field.
    """
    if chosen is not None and not isinstance(chosen, Mapping):
        raise UserError(f"columns must map fields to columns, got {chosen!r}")
    for field in chosen or {}:
        if field not in DEFAULT_COLUMNS:
            known = ", ".join(DEFAULT_COLUMNS)
            raise UserError(f"columns: unknown field {field!r}; choose from {known}")
    return chosen or {}


def _missing_column(
    names: Sequence[str], free: Sequence[str], fields: Sequence[str], where: str
) -> str:
    """What is missing, what is there, and how the column that means it is named."""
    message = f"{where} has no column for the {' or '.join(fields)} (it has {', '.join(names)})"
    if fields == ("image",) and any("url" in name.lower() for name in names):
        return f"{message}; it only links to images: download them first, as webdataset tars"
    # Beside a question an answer is missing, whatever else would do.
    field = "answer" if "answer" in fields and "question" in names else fields[0]
    column = free[0] if len(free) == 1 else "<column>"
    return f"{message}; name it with columns: {{{field}: {column}}}"


def texts_of(
    cells: Mapping[str, Any], columns: Mapping[str, str], place: str, fix: str = IN_QUOTES
) -> dict[str, Any]:
    """The texts of a :class:`Row`; of several answers the most common one is *the* answer.

    Args:
        cells: Of the row.
        columns: Field to column.
        place: The row, for messages.
        fix: How a number becomes text there, for messages.

    Raises:
        UserError: A cell has the wrong type.
    """
    answers = _answers(cells, columns.get("answers"), place)
    answer = _text(cells, columns.get("answer"), place, fix, answers=True)
    return {
        "question": _text(cells, columns.get("question"), place, fix),
        "answer": most_common_answer(answers) if answer is None and answers else answer,
        "caption": _caption(cells, columns.get("caption"), place, fix),
        "answers": answers,
    }


def _text(
    cells: Mapping[str, Any], column: str | None, place: str, fix: str, answers: bool = False
) -> str | None:
    """The text of a cell, stripped; None where there is no such cell or it is empty.

    With ``answers`` several texts have a field of their own.
    """
    value = None if column is None else cells.get(column)
    if is_empty(value):
        return None
    if not isinstance(value, str):
        kind = ""
        if isinstance(value, Mapping):
            kind, fix = ", an object", "write the text itself there"
        elif isinstance(value, list | tuple):
            kind, fix = ", a list", "write one text"
            if answers:
                fix = "several answers go into a column answers: rename it, or write columns: "
                fix += f"{{answers: {column}}}"
        raise UserError(f"{place}: {column} is {value!r:.60}{kind}, but must be text ({fix})")
    return value.strip() or None


def _caption(cells: Mapping[str, Any], column: str | None, place: str, fix: str) -> str | None:
    """A text; of several (a list, or an object as json, as BAGEL has it) the first."""
    value = None if column is None else cells.get(column)
    if column == "captions" and isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise UserError(f"{place}: captions is no json ({error}); mend the row") from None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        value = next(iter(value), None)
    return _text({str(column): value}, column, place, fix)


def is_empty(value: object) -> bool:
    """An empty cell: json's null, or the NaN that pandas puts into a cell without a value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _answers(cells: Mapping[str, Any], column: str | None, place: str) -> tuple[str, ...]:
    """The answers of a cell, stripped; empty ones are left out."""
    value = None if column is None else cells.get(column)
    try:
        texts = raw_answers(value)
    except UnreadAnswers as error:
        raise UserError(
            f'{place}: {column} is {value!r:.80}, but must be a list of texts or of {{"answer": '
            f"text}} ({error.reason}; {error.fix})"
        ) from None
    # Few distinct answers, ten a row: interning saves most of their memory.
    return tuple(sys.intern(text.strip()) for text in texts if text.strip())


class UnreadAnswers(ValueError):
    """A cell of answers that cannot be read.

    Attributes:
        reason: The same for all cells with this fault, for counting.
        fix: How it can be read.
    """

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}; {fix}")
        self.reason, self.fix = reason, fix


def raw_answers(cell: Any) -> list[str]:
    """The annotators' answers of a cell, in order, letter by letter: of training and evaluation.

    A list of texts or of ``{"answer": text}``, or ``{"answer": [texts]}``. A text is one answer, or
    a list as json or Python writes it. A whole number in a list is its text: annotators count. One
    that stands alone may be the number of an option instead. An empty cell holds no answers.

    Raises:
        UnreadAnswers: Anything else.
    """
    if is_empty(cell):
        return []
    if isinstance(cell, str):
        found = _written_list(cell)
        cell = [cell] * bool(cell.strip()) if found is None else found
    # Older releases of `datasets` turn lists of dicts inside out.
    items = cell.get("answer") if isinstance(cell, Mapping) else cell
    if not isinstance(items, list | tuple):
        raise UnreadAnswers(f"it is {type(items).__name__}", "write a list, texts in quotes")
    return [_raw_answer(item) for item in items]


def _raw_answer(item: Any) -> str:
    """One of several answers."""
    if isinstance(item, Mapping) and "answer" not in item:
        raise UnreadAnswers('an answer has no key "answer"', 'write {"answer": text}')
    text = as_text(item["answer"] if isinstance(item, Mapping) else item)
    if is_empty(text):
        raise UnreadAnswers("an answer is empty", 'leave it out of the list, or write ""')
    if not isinstance(text, str):
        raise UnreadAnswers(f"an answer is {type(text).__name__}", IN_QUOTES)
    return text


def as_text(value: Any) -> Any:
    """A whole number as its text; all else as it is, for 2.50 and true may be written otherwise."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _written_list(text: str) -> list[Any] | None:
    """The list that a text is, as json or as Python (and pandas) writes it; None: another text."""
    if not (text.lstrip().startswith("[") and text.rstrip().endswith("]")):
        return None
    for read in (parse_json, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list):
            return value
    return None


def lenient_row(
    id: str,
    image: Any,
    texts: dict[str, Any],
    place: str,
    require_answers: bool = True,
    picture_only: bool = False,
) -> Row | SkippedRow:
    """The row of a source that no one repairs row by row: without text it is left out.

    With ``picture_only`` it is kept. A text with the mark of a picture is left out, too. The row is
    named by its id; ``place`` says what that does not.
    """
    given = texts
    if texts["question"] is None or (texts["answer"] is None and require_answers):
        texts = texts | NO_QUESTION  # half a question is none
    if texts["question"] is None and texts["caption"] is None and not picture_only:
        lacks = _lacks(given)
        return SkippedRow(id, NO_TEXT, f"{place}: {lacks}" if place else lacks)
    return _marked(id, texts, place) or Row(id=id, image=image, **texts)


def _lacks(texts: Mapping[str, Any]) -> str:
    """What a row without text has not."""
    question, answer = texts["question"], texts["answer"]
    if question is not None and answer is None:
        return f"the question {question!r:.60} has no answer"
    if answer is not None and question is None:
        return f"the answer {answer!r:.60} has no question"
    return "neither a question with its answer nor a caption"


def _marked(id: str, texts: Mapping[str, Any], place: str) -> SkippedRow | None:
    """What is left out because a text has the mark of a picture, as conversations have them.

    Here no mark is needed. It would be read as letters, or as a second picture by a model that has
    the same one.
    """
    for field in ("question", "answer", "caption"):
        if texts[field] and (mark := MARKS.search(texts[field])):
            detail = f"the {field} is {texts[field]!r:.60}; write it without the mark"
            detail = f"{place}: {detail}" if place else detail
            return SkippedRow(id, f"text with the mark {mark[0].strip()}", detail)
    return None


def table_rows(
    table: Path, columns: Mapping[str, str] | None, needs: Sequence[str | tuple[str, ...]]
) -> Iterator[Row | SkippedRow]:
    """The rows of a json list, jsonl, csv or tsv, each of which must have what is needed.

    A row whose text has the mark of a picture is left out.

    Args:
        table: The file.
        columns: Field to column, where they have unusual names.
        needs: Fields; of a tuple of fields, one of them. Where it is captions, a csv or tsv of two
            columns needs no header, and questions are not read.

    Raises:
        UserError: A malformed row, or one without what is needed, by file and line.
    """
    needs = ("image", *needs)
    headerless = ("image", "caption") if "caption" in needs and columns is None else ()
    for number, (place, cells) in enumerate(read_table(table, headerless, known=_KNOWN)):
        fields = find_columns(cells, columns, required=needs, where=place)
        texts = texts_of(cells, fields, place)
        for need in needs[1:]:
            field = need if isinstance(need, str) else need[0]
            if texts[field] is None:
                raise UserError(f"{place} has an empty {field}; fill it in, or drop the row")
        if "caption" in needs:
            texts |= NO_QUESTION
        id = str(cells.get(fields.get("id", ""), number))
        image = _named(cells[fields["image"]], fields["image"], place)
        yield _marked(id, texts, place) or Row(id=id, image=image, **texts)


def _named(value: object, column: str, place: str) -> str:
    """The path of a row's one picture."""
    if is_empty(value) or value == [] or (isinstance(value, str) and not value.strip()):
        raise UserError(
            f"{place}: {column} is {value!r:.60}, an empty cell; write the path of the picture, or "
            "drop the row"
        )
    if isinstance(value, list):
        raise UserError(
            f"{place}: {column} is {value!r:.60}, a list of {len(value)}, but a row of this table "
            "shows one picture; write its path alone, or read the table with type: hf, which takes "
            "lists"
        )
    if not isinstance(value, str):
        raise UserError(
            f"{place}: {column} is {value!r:.60}, but must be the path of an image file; write it "
            "there, or name another column with columns: {image: <column>}"
        )
    if re.match(r"https?://", value):
        raise UserError(
            f"{place}: {column} {value!r:.80} is a link; download the images first (webdataset "
            "tars)"
        )
    return value.strip()
