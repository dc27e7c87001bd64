"""What a text for a model must not hold, and how long a row of tokens may be.

Questions, answers and captions are put between the model's own marks. A text that holds such a mark
itself is read as one: a second picture, the end of the answer, another turn. Both are found here by
looking at the text, without laying a row out, so that a whole data set is checked in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol


class RowLengths(Protocol):
    """The part of a layout that says how many tokens a row has."""

    def reading_length(self, question: str, answer: str) -> int:
        """Tokens of picture, question and answer, all marks included."""
        ...

    def drawing_length(self, prompt: str) -> int:
        """Tokens of a prompt and the picture that is drawn of it."""
        ...


class TextRules:
    """The rules of one model.

    Args:
        marks: strings that the tokenizer reads as tokens of its own.
        layout: counts tokens.
        max_positions: what the language model can hold; None where it does not say.
    """

    def __init__(
        self, marks: Iterable[str], layout: RowLengths, max_positions: int | None = None
    ) -> None:
        self.marks = tuple(sorted(marks, key=len, reverse=True))
        self._first = tuple({mark[0] for mark in self.marks})
        self.layout = layout
        self.max_positions = max_positions
        # What a row holds beside the texts; a little is added for tokens that only some texts need.
        self._around_reading = layout.reading_length("a", "a") + 8
        self._around_drawing = layout.drawing_length("a") + 8

    def problem(
        self, texts: Mapping[str, str], *, max_length: int | None = None
    ) -> tuple[str, str] | None:
        """Why texts cannot be laid out, with what to do about it; None if they can.

        Args:
            texts: "question", "answer" and "caption", each perhaps empty.
            max_length: longest row in tokens; default: what the model can hold.
        """
        for field, text in texts.items():
            mark = self._mark_in(text)
            if mark is not None:
                return (
                    f"{mark!r} in its {field}",
                    "this is a token of the model's own: remove it from the text (a picture is "
                    "added for you)",
                )
        limit = self.max_positions if max_length is None else max_length
        if limit is not None and (length := self._too_long(texts, limit)):
            whose = "the model's positions" if max_length is None else "max_length"
            return (
                f"too many tokens ({whose}: {limit})",
                f"it needs {length}, its picture included; shorten its texts",
            )
        return None

    def _mark_in(self, text: str) -> str | None:
        if not any(first in text for first in self._first):
            return None
        return next((mark for mark in self.marks if mark in text), None)

    def _too_long(self, texts: Mapping[str, str], limit: int) -> int | None:
        """The length of a row that is too long; rows that are surely short are not tokenized."""
        question, answer = texts.get("question", ""), texts.get("answer", "")
        if answer and self._around_reading + _bytes(question) + _bytes(answer) > limit:
            length = self.layout.reading_length(question, answer)
            if length > limit:
                return length
        caption = texts.get("caption", "")
        if caption and self._around_drawing + _bytes(caption) > limit:
            length = self.layout.drawing_length(caption)
            if length > limit:
                return length
        return None


def marks_of(tokenizer: Any, *more: str | None) -> set[str]:
    """Strings that a tokenizer reads as special tokens.

    Not the token for unknown words, which is no mark, and no plain word: that could be meant.

    Args:
        tokenizer: of transformers.
        more: further marks, such as a processor's placeholder for pictures.
    """
    special = set(tokenizer.all_special_tokens)
    special |= {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    special -= {tokenizer.unk_token}
    return {mark for mark in special if mark and not mark[0].isalnum()} | {m for m in more if m}


def processor_marks(processor: Any) -> list[str]:
    """Strings by which a processor marks pictures, such as ``image_token``."""
    return [
        value
        for name, value in vars(processor).items()
        if "token" in name and isinstance(value, str) and not value[:1].isalnum()
    ]


def _bytes(text: str) -> int:
    """No tokenizer makes more tokens of a text than it has bytes."""
    return len(text.encode("utf-8", "surrogatepass"))
