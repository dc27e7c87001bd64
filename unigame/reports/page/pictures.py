"""The gallery: pictures of a run as data URIs, and what became of each answer."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unigame.errors import UserError

NUMBERS = "zero one two three four five six seven eight nine ten".split()
AMPLIFIED = 4
"""What C changes is often faint: differences are shown four times as strong."""
SMALL = 96  # px a side: below, pixels are shown as squares
LOSSLESS_BYTES = 100_000  # larger pictures become JPEG: sixteen of them would be 15 MB else
BROKEN, REDRAWN, HELD, WRONG = "broken", "redrawn", "held", "wrong"
OUTCOMES = {
    BROKEN: "the attack broke it",
    REDRAWN: "redrawing broke it",
    HELD: "the answer held",
    WRONG: "wrong on the clean picture",
}
"""Kinds of examples in the order of the gallery: successes of the attack first."""


@dataclass(frozen=True)
class Shown:
    """One picture of a card: a data URI, what the model said to it, and whether that is right."""

    kind: str
    title: str
    uri: str
    said: str
    right: bool
    similarity: float | None = None


@dataclass(frozen=True)
class Card:
    """One example."""

    question: str
    answer: str
    caption: str
    style: str
    outcome: str
    shown: tuple[Shown, ...]
    difference: str
    same: bool
    small: bool

    @property
    def answer_kind(self) -> str:
        """Of the true answer, as VQA counts them."""
        plain = _plain(self.answer)
        if plain in ("yes", "no"):
            return "yes or no"
        is_number = plain in NUMBERS or plain.replace(",", "").replace(".", "", 1).isdigit()
        return "number" if is_number else "other"


def cards(examples: Sequence[Mapping[str, Any]]) -> list[Card]:
    """Cards in the order of ``OUTCOMES``.

    Raises:
        UserError: a picture cannot be read.
    """
    made = [_card(entry) for entry in examples]
    return sorted(made, key=lambda card: list(OUTCOMES).index(card.outcome))


@dataclass(frozen=True)
class Drawn:
    """A confirmed drawing: a data URI, and whether the reader finds it right, where it looked."""

    uri: str
    caption: str
    step: int
    question: str
    answer: str
    right: bool | None
    small: bool


def drawings(entries: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """Confirmed drawings of a method, each with the first of its questions.

    Raises:
        UserError: a picture cannot be read.
    """
    made = []
    for entry in entries:
        picture = _open(entry["picture"])
        question, answer = next(iter(entry.get("questions") or []), ("", ""))
        made.append(
            Drawn(
                data_uri(picture),
                str(entry.get("caption", "")),
                int(entry.get("step", 0)),
                str(question),
                str(answer),
                entry.get("right"),
                max(picture.size) <= SMALL,
            )
        )
    return made


def counts(made: Sequence[Card]) -> list[tuple[str, str, int]]:
    """(kind, words, how many) for the filter, of kinds that occur."""
    number = {kind: sum(card.outcome == kind for card in made) for kind in OUTCOMES}
    return [(kind, OUTCOMES[kind], number[kind]) for kind in OUTCOMES if number[kind]]


def answer_kinds(made: Sequence[Card]) -> list[tuple[str, int]]:
    """(kind of the true answer, how many), where there are several kinds to choose from."""
    found = Counter(card.answer_kind for card in made)
    return sorted(found.items()) if len(found) > 1 else []


def is_right(said: str, answer: str) -> bool:
    """Whether a free answer is the true one, but for case and a full stop."""
    return _plain(said) == _plain(answer)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _card(entry: Mapping[str, Any]) -> Card:
    titles = {"clean": "clean", "redrawn": "redrawn", "attacked": "attacked"}
    if "styled" in entry["pictures"]:  # a free drawing of its caption, not of this picture
        titles["styled"] = "drawn anew"
    opened = {kind: _open(entry["pictures"][kind]) for kind in titles}
    said, similarity = entry.get("said", {}), entry.get("similarity", {})
    answer = str(entry.get("answer", ""))
    shown = tuple(
        Shown(
            kind,
            title,
            data_uri(opened[kind]),
            str(said.get(kind, "")),
            is_right(str(said.get(kind, "")), answer),
            similarity.get(kind),
        )
        for kind, title in titles.items()
    )
    difference = _difference(opened["redrawn"], opened["attacked"])
    return Card(
        question=str(entry.get("question", "")),
        answer=answer,
        caption=str(entry.get("caption") or ""),
        style=str(entry.get("style") or ""),
        outcome=_outcome(*(one.right for one in shown[:3])),
        shown=shown,
        difference=data_uri(difference),
        same=difference.getextrema() == ((127, 127),) * 3,
        small=max(opened["clean"].size) <= SMALL,
    )


def _outcome(clean: bool, redrawn: bool, attacked: bool) -> str:
    if not clean:
        return WRONG
    if not redrawn:
        return REDRAWN
    return HELD if attacked else BROKEN


def _difference(one: Image.Image, other: Image.Image) -> Image.Image:
    """Grey where nothing changed; brighter or darker, by colour, where something did."""
    gap = np.asarray(other, dtype=np.float32) - np.asarray(one.resize(other.size), dtype=np.float32)
    return Image.fromarray((127.5 + AMPLIFIED * gap).clip(0, 255).astype(np.uint8))


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except OSError as error:
        raise UserError(
            f"picture {path} cannot be read ({error}); remove {path.parent.name}/"
        ) from error


def data_uri(picture: Image.Image) -> str:
    """The picture itself as an address."""
    out, kind = io.BytesIO(), "png"
    picture.save(out, "PNG", optimize=True)
    if out.tell() > LOSSLESS_BYTES:
        out, kind = io.BytesIO(), "jpeg"
        picture.save(out, "JPEG", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
