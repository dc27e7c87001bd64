"""A look at data before training: rows as a model reads them, their lengths, a contact sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from unigame.data.peek import peek_texts
from unigame.data.records import (
    RecordSource,
    SkippedRow,
    load_record_or_skip,
    num_pictures,
    pictures_of,
)
from unigame.errors import UserError
from unigame.turns import PICTURE, REPLY, TURN

if TYPE_CHECKING:
    from unigame.backbones.base import Preprocessor

MEASURED = 1_000
SHEET_ROWS = 24
_COLUMNS, _SIDE, _TEXT, _GAP = 6, 200, 64, 10


class ReadRow(NamedTuple):
    """One row of a loss, as a model reads it, in text with the special tokens.

    Attributes:
        loss: ``"answer"``, ``"generation"`` or ``"reconstruction"``.
        given: what stands before the trained tokens.
        trained: those that the loss is taken of.
        tokens: of the whole row; for a drawing, of its prompt.
        trained_tokens: of the answer, end mark included; 0 for a drawing.
        unknown: tokens of the text that are the tokenizer's word for "unknown".
    """

    loss: str
    given: str
    trained: str
    tokens: int
    trained_tokens: int
    unknown: int


def read_rows(texts: Mapping[str, Any], preprocessor: Preprocessor) -> list[ReadRow]:
    """What is made of one record: a row for its answer, and one for its caption.

    Of a picture alone it is the row by which it would be drawn again, with one of many texts.

    Args:
        texts: of the record.
        preprocessor: the model family's own; without a ``layout``, tokens are only counted.
    """
    rows = []
    layout = getattr(preprocessor, "layout", None)
    number = num_pictures(texts)
    how_many = () if number == 1 else (number,)
    question, answer, caption = (texts.get(name) for name in ("question", "answer", "caption"))
    if question and answer:
        asked = preprocessor.answer(question, answer, *how_many)
        given, trained = _shown(asked.prompt, layout), _shown(asked.answer, layout)
        ids = (*asked.prompt, *asked.answer)
        unknown = _unknown(ids, layout)
        rows.append(ReadRow("answer", given, trained, len(ids), len(asked.answer), unknown))
    if caption:
        ids = preprocessor.prompt(caption).ids
        picture = "[the picture's tokens]"
        unknown = _unknown(ids, layout)
        rows.append(ReadRow("generation", _shown(ids, layout), picture, len(ids), 0, unknown))
    if not rows and layout is not None:
        try:
            ids = layout.reconstruction_ids("describe the picture")
        except UserError:  # the family cannot draw what it reads
            return rows
        shown = _shown(ids, layout)
        rows.append(ReadRow("reconstruction", shown, "[the picture's tokens]", len(ids), 0, 0))
    return rows


def _unknown(ids: Sequence[int], layout: Any) -> int:
    unknown = getattr(getattr(layout, "tokenizer", None), "unk_token_id", None)
    return 0 if unknown is None else list(ids).count(unknown)


def _shown(ids: Sequence[int], layout: Any) -> str:
    """Tokens as text, special ones and line breaks visible, each picture in a few words."""
    if layout is None:
        return f"[{len(ids)} tokens]"
    queries = [token for token in ids if token < 0 and token != layout.image_token_id]
    decode = layout.tokenizer.decode

    def text(part: Sequence[int]) -> str:
        kept = [token for token in part if token >= 0]
        said = str(decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return said.replace("\n", "\\n")

    end = f"[{len(queries)} places to draw from]" if queries else ""
    said, rest = "", list(ids)
    for _ in range(rest.count(layout.image_token_id) // layout.num_image_tokens):
        first = rest.index(layout.image_token_id)
        length = layout.image_span
        said += text(rest[:first]) + f"[picture, {length} tokens]"
        rest = rest[first + length :]
    return said + text(rest) + end


# ---- many rows -----------------------------------------------------------------------------------
def spread(size: int, most: int) -> list[int]:
    """At most so many places, evenly over all rows."""
    return (
        sorted({size * place // most for place in range(most)}) if size > most else [*range(size)]
    )


def texts_of_rows(dataset: RecordSource, places: Sequence[int]) -> Iterator[Mapping[str, Any]]:
    """The texts of these rows, without their pictures where that is cheap."""
    peeked = peek_texts(dataset)
    if peeked is not None:
        wanted = set(places)
        yield from (row for place, row in enumerate(peeked) if place in wanted)
        return
    for place in places:
        row = load_record_or_skip(dataset, place)
        if not isinstance(row, SkippedRow):
            yield row


class Sheet(NamedTuple):
    """What stands on a contact sheet.

    Attributes:
        pictures: how many it shows.
        unread: rows whose picture could not be read, and why.
    """

    pictures: int
    unread: list[SkippedRow]


def write_sheet(dataset: RecordSource, path: str | Path) -> Sheet:
    """A contact sheet of at most 24 rows, spread over the data.

    Of a mixture they are spread over all rows of its sources, whatever an epoch shows of them. Rows
    of text alone are passed by; several pictures of a row stand side by side.

    Raises:
        UserError: the file cannot be written.
    """
    places = _with_pictures(dataset)
    lines = -(-len(places) // _COLUMNS)
    wide = _COLUMNS * (_SIDE + _GAP) + _GAP
    sheet = Image.new("RGB", (wide, lines * (_SIDE + _TEXT + _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    shown, unread = 0, []
    for number, (part, place) in enumerate(places):
        left = _GAP + number % _COLUMNS * (_SIDE + _GAP)
        top = _GAP + number // _COLUMNS * (_SIDE + _TEXT + _GAP)
        row: Any = load_record_or_skip(part, place)
        if isinstance(row, SkippedRow):
            words = f"{row.id}: {row.reason}"
            unread.append(row)
        else:
            pictures = pictures_of(row)
            _paste(sheet, pictures, left, top)
            words = _words(row)
            shown += len(pictures)
        text = "\n".join(textwrap.wrap(words, 34, max_lines=4, placeholder=" ..."))
        draw.multiline_text((left, top + _SIDE + 4), text, fill="black", font=font, spacing=2)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, format="PNG")
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"the contact sheet cannot be written to {path}: {reason}") from error
    return Sheet(shown, unread)


def _with_pictures(dataset: RecordSource) -> list[tuple[RecordSource, int]]:
    """Sources, and places in them, of rows that show a picture as far as that is cheap to tell."""
    found: list[tuple[RecordSource, Sequence[int]]] = []
    for part in _sources(dataset):
        peeked = peek_texts(part)
        places: Sequence[int] = range(len(part))
        if peeked is not None:
            places = [place for place, row in enumerate(peeked) if num_pictures(row)]
        found.append((part, places))
    wanted = spread(sum(len(places) for _, places in found), SHEET_ROWS)
    shown, before = [], 0
    for part, places in found:
        own = range(before, before + len(places))
        shown += [(part, places[number - before]) for number in wanted if number in own]
        before = own.stop
    return shown


def _sources(dataset: Any) -> list[RecordSource]:
    """What a mixture is made of: the order of its texts is not that of its rows."""
    parts = getattr(dataset, "datasets", None)
    return [dataset] if parts is None else [one for part in parts for one in _sources(part)]


def _paste(sheet: Image.Image, pictures: Sequence[Image.Image], left: int, top: int) -> None:
    """Pictures side by side, at the foot of a square."""
    wide = _SIDE // max(1, len(pictures))
    for number, picture in enumerate(pictures):
        small = ImageOps.contain(picture, (wide, _SIDE))
        middle = left + number * wide + (wide - small.width) // 2
        sheet.paste(small, (middle, top + _SIDE - small.height))


def _words(row: Mapping[str, Any]) -> str:
    if question := row.get("question"):
        for mark, shown in ((PICTURE, " [picture] "), (REPLY, " → "), (TURN, " | ")):
            question = question.replace(mark, shown)
        return f"{question.strip()} → {row.get('answer')}"
    return str(row.get("caption") or "")


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Matplotlib's font knows more letters than Pillow's own."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 11)
