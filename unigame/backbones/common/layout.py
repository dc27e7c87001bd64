"""Token rows: questions, answers, drawing prompts, the places of pictures, and padding.

One class turns text into ids, for training and for inference. ``TokenLayout`` is what every family
has; ``ChatLayout`` is that of a transformers processor, with its chat template.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unigame.errors import UserError
from unigame.turns import PICTURE, split_turns, without_places

_IMAGE_MARK = re.compile(r"<image (\d+)>")
Message = dict[str, Any]


@dataclass
class PaddedTokens:
    """A batch of token rows. ``L`` is the longest row.

    Attributes:
        ids_BL: token ids; pad id where there is no token.
        mask_BL: 1 at tokens, 0 at padding.
        positions_BL: rotary position of each token, counted from its row's first token.
        axes_ABL: the same along A axes, where a VLM gives a picture's tokens rows and columns;
            ``positions_BL`` is then the largest of them.
    """

    ids_BL: Tensor
    mask_BL: Tensor
    positions_BL: Tensor
    axes_ABL: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        """What the language model takes as ``position_ids``: (B, L), or (A, B, L)."""
        return self.positions_BL if self.axes_ABL is None else self.axes_ABL

    @property
    def next_position_B1(self) -> Tensor:
        """Position of the token that follows each left-padded row."""
        return self.positions_BL[:, -1:] + 1


class TokenLayout(ABC):
    """Texts as token ids, the same in every use.

    Attributes:
        tokenizer: of the language model, with an end mark.
        image_token_id: marks the N places of a picture's tokens in a row.
        picture_mark: the text that stands for a picture.
        num_image_tokens: N, places of one picture.
    """

    image_token_id: int
    num_image_tokens: int
    picture_mark: str

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.bos_id, self.eos_id = tokenizer.bos_token_id, int(tokenizer.eos_token_id)
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    @property
    def image_span(self) -> int:
        """Tokens from the first placeholder of a picture to its last one."""
        return self.num_image_tokens

    @abstractmethod
    def question_ids(self, question: str, num_images: int = 1) -> list[int]:
        """The prompt of a question about its images, the N places of each image included.

        ``turn_contents`` says where each stands; without an image the row is text alone.

        Raises:
            UserError: the question itself holds the mark of a picture.
        """

    def text_ids(self, text: str) -> list[int]:
        """The prompt of a text that is shown no picture."""
        return self.question_ids(text, 0)

    @abstractmethod
    def answer_ids(self, question: str, answer: str, num_images: int = 1) -> list[int]:
        """The answer as it follows the prompt, with its end mark."""

    @abstractmethod
    def prompt_ids(self, prompt: str) -> list[int]:
        """A text -> image prompt, up to the token that predicts the first code."""

    def drawing_start(self) -> list[int]:
        """What stands between a question and what is drawn as its answer.

        Raises:
            UserError: the family does not say.
        """
        raise UserError(
            f"{type(self).__name__} has no drawing_start, so no picture can be drawn from one that "
            "is read; leave method reca out"
        )

    def reconstruction_ids(self, template: str) -> list[int]:
        """A picture and a text, up to the token that predicts the first code of its redrawing."""
        return [*self.question_ids(template), *self.drawing_start()]

    @abstractmethod
    def drawing_length(self, prompt: str) -> int:
        """Tokens of a prompt and of what is drawn behind it."""

    @abstractmethod
    def marks(self) -> set[str]:
        """Strings that no text may hold: the tokenizer reads them as tokens of its own."""

    def shared_start(self, rows: Sequence[Sequence[int]]) -> int:
        """How many tokens all prompts have in common up to the end of their first image; or 0."""
        return 0

    def axes(self, row: Sequence[int]) -> list[list[int]] | None:
        """Positions of a row along several axes; None where they just count tokens."""
        return None

    def num_positions(self, row: Sequence[int]) -> int:
        """Rotary positions that a row takes, up to its last one: a token each, unless axes say."""
        axes = self.axes(row)
        return len(row) if axes is None else 1 + max(map(max, axes))

    def reading_row(self, question: str, answer: str, num_images: int = 1) -> list[int]:
        """Pictures, question and answer, all marks included."""
        prompt = self.question_ids(question, num_images)
        return [*prompt, *self.answer_ids(question, answer, num_images)]

    def held_picture(self, text: str, what: str = "question", mark: str = "") -> UserError:
        """The error for a question, or another text, that itself holds the mark of a picture."""
        return UserError(
            f"{what} {text!r} holds the image placeholder {mark or self.picture_mark!r}, which "
            "stands for a picture; remove it from the text, the image is added for you"
        )

    def pad(self, rows: Sequence[Sequence[int]], side: str, device: torch.device) -> PaddedTokens:
        """Rows of ids -> a padded batch; ``side`` is "right" in training, "left" in generation."""
        length = max(len(row) for row in rows)

        def filled(values: Sequence[int], fill: int) -> list[int]:
            padding = [fill] * (length - len(values))
            return [*padding, *values] if side == "left" else [*values, *padding]

        ids_BL = torch.tensor([filled(row, self.pad_id) for row in rows], device=device)
        mask_BL = torch.tensor([filled([1] * len(row), 0) for row in rows], device=device)
        axes = [axes for row in rows if (axes := self.axes(row)) is not None]
        if not axes:
            return PaddedTokens(ids_BL, mask_BL, (mask_BL.cumsum(-1) - 1).clamp(min=0))
        axes_BAL = torch.tensor([[filled(axis, 0) for axis in each] for each in axes])
        axes_ABL = axes_BAL.transpose(0, 1).to(device)
        return PaddedTokens(ids_BL, mask_BL, axes_ABL.amax(0), axes_ABL)


class ChatLayout(TokenLayout):
    """The layout of a transformers processor.

    Args:
        processor: with a tokenizer that has an end mark, and a chat template if it is needed.
        num_image_tokens: N, placeholders of one picture.
        example: a Hub id of the family, for the error message.

    Raises:
        UserError: the processor has no chat template.
    """

    needs_template: ClassVar[bool] = True
    """False for a family that lays its turns out without one."""

    def __init__(self, processor: Any, num_image_tokens: int, example: str) -> None:
        if self.needs_template and not processor.chat_template:
            raise UserError(
                "the checkpoint's processor has no chat template, so prompts cannot be laid out; "
                f"use a checkpoint in the Hub format, such as {example}"
            )
        super().__init__(processor.tokenizer)
        self.processor, self.num_image_tokens = processor, num_image_tokens
        self.picture_mark = processor.image_token
        self.image_token_id = int(self.tokenizer.convert_tokens_to_ids(self.picture_mark))

    # ---- what a family says --------------------------------------------------------------------
    def picture_text(self) -> str:
        """What the processor puts in the place of one image placeholder."""
        placeholders = self.picture_mark * self.num_image_tokens
        return f"{self.processor.image_start_token}{placeholders}{self.processor.image_end_token}"

    def opening(self) -> str:
        """Text before the first turn."""
        return ""

    def turns(self, question: str, num_images: int = 1) -> list[Message]:
        """The conversation that asks a question about its images, earlier turns included.

        A system prompt is left out: a family that knows where it stands adds it.
        """
        contents = turn_contents(question, num_images)
        speakers = ("user", "assistant")
        return [
            {"role": speakers[number % 2], "content": content}
            for number, content in enumerate(contents)
        ]

    def question_text(self, question: str, num_images: int = 1) -> str:
        """The prompt of a question about its images, with one unexpanded placeholder for each."""
        messages = self.turns(question, num_images)
        return self.opening() + self.render(messages, add_generation_prompt=True)

    def reply_text(self, question: str, answer: str, num_images: int = 1) -> str:
        """The whole conversation, up to the answer's last word."""
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]}
        return self.opening() + self.render([*self.turns(question, num_images), reply])

    # ---- rows ----------------------------------------------------------------------------------
    def question_ids(self, question: str, num_images: int = 1) -> list[int]:
        """The prompt as the processor tokenizes it."""
        text = self.question_text(question, num_images)
        ids = self.tokenize(text.replace(self.picture_mark, self.picture_text()))
        if ids.count(self.image_token_id) != num_images * self.num_image_tokens:
            raise self.held_picture(question)
        return ids

    def answer_ids(self, question: str, answer: str, num_images: int = 1) -> list[int]:
        """What the reply has beyond the prompt, and the end mark."""
        prompt = self.question_text(question, num_images)
        whole = self.reply_text(question, answer, num_images)
        prompt_ids, whole_ids = self.tokenize(prompt), self.tokenize(whole)
        if whole_ids[: len(prompt_ids)] == prompt_ids:
            return [*whole_ids[len(prompt_ids) :], self.eos_id]
        # A tokenizer that merges across the border: keep the prompt that inference will see.
        rest = self.tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
        return [*rest, self.eos_id]

    def shared_start(self, rows: Sequence[Sequence[int]]) -> int:
        """Up to the last placeholder of the first image, where the rows are equal until there."""
        row = list(rows[0])
        length = row.index(self.image_token_id) + self.image_span
        return length if all(list(other[:length]) == row[:length] for other in rows) else 0

    def drawing_length(self, prompt: str) -> int:
        """The codes, and what the family puts between them, stand behind the prompt."""
        return len(self.prompt_ids(prompt)) + self.image_span

    def marks(self) -> set[str]:
        """Special tokens, and the strings by which the processor marks pictures."""
        own = {
            value
            for name, value in vars(self.processor).items()
            if "token" in name and isinstance(value, str) and value and not value[0].isalnum()
        }
        return special_marks(self.tokenizer) | own

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        """The checkpoint's chat template."""
        return str(
            self.processor.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        )

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text that holds its own special tokens, as the processor tokenizes it."""
        return list(self.tokenizer(text)["input_ids"])


def picture_order(question: str, num_images: int) -> list[int]:
    """Which image stands where: marks in the order of the text, images in that of their numbers.

    ``"Is <image 3> left of <image 1>?"`` with two images gives [1, 0]. Without a mark for each
    image in the first turn, and where ``turn_contents`` is told the places, the order is their own.
    """
    first = split_turns(question).texts[0]
    marks = list(dict.fromkeys(int(number) for number in _IMAGE_MARK.findall(first)))
    if num_images > 1 and len(marks) == num_images and question.count(PICTURE) != num_images:
        return [sorted(marks).index(mark) for mark in marks]
    return list(range(num_images))


def turn_contents(question: str, num_images: int = 1) -> list[list[dict[str, str]]]:
    """What user and assistant say in turn, as parts: pictures and texts.

    Where the question says where its images stand (``unigame.turns``), they stand there. Otherwise
    they stand in the first turn: each at its own ``<image k>`` mark if there are several and as
    many different marks (``picture_order`` says which comes where), else all before the text.
    """
    texts = split_turns(question).texts
    if num_images and sum(text.count(PICTURE) for text in texts) == num_images:
        return [_at_places(text) for text in texts]
    first, *others = (without_places(text) for text in texts)
    return [_content(first, num_images), *([{"type": "text", "text": text}] for text in others)]


def _at_places(text: str) -> list[dict[str, str]]:
    first, *others = text.split(PICTURE)
    content = _text(first)
    for piece in others:
        content += [{"type": "image"}, *_text(piece)]
    return content or [{"type": "text", "text": ""}]


def _content(question: str, num_images: int) -> list[dict[str, str]]:
    image = {"type": "image"}
    marks = {int(number) for number in _IMAGE_MARK.findall(question)}
    if num_images < 2 or len(marks) != num_images:
        return [image] * num_images + [{"type": "text", "text": question}]
    content, end, seen = [], 0, set()
    for mark in _IMAGE_MARK.finditer(question):
        if (number := int(mark[1])) not in seen:  # later mentions stay in the text
            seen.add(number)
            content += [*_text(question[end : mark.start()]), image]
            end = mark.end()
    return [*content, *_text(question[end:])]


def _text(piece: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": piece.strip()}] if piece.strip() else []


# ---- what texts must not hold --------------------------------------------------------------------
def special_marks(tokenizer: Any) -> set[str]:
    """Strings that a tokenizer reads as special tokens.

    Not the token for unknown words, which is no mark, and no plain word: that could be meant.
    """
    special = set(tokenizer.all_special_tokens)
    special |= {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    special -= {tokenizer.unk_token}
    return {mark for mark in special if mark and not mark[0].isalnum()}


class TextRules:
    """What the texts of a record must not hold, and how long its rows may be.

    A text that holds one of the model's own marks is read as one: a second picture, the end of the
    answer, another turn. Found by looking at the text, without laying a row out, so that a whole
    data set is checked in seconds.

    Args:
        layout: knows the marks, and counts tokens and positions.
        max_positions: what the language model can hold; None where it does not say.

    Attributes:
        max_tokens: of a row, by ``max_positions``; None where a picture's tokens share a position,
            so that no number of tokens is too many.
    """

    def __init__(self, layout: TokenLayout, max_positions: int | None = None) -> None:
        self.marks = tuple(sorted(layout.marks(), key=len, reverse=True))
        self._first = tuple({mark[0] for mark in self.marks})
        self.layout, self.max_positions = layout, max_positions
        row = layout.reading_row("a", "a")
        self.max_tokens = max_positions if layout.num_positions(row) == len(row) else None
        # What a row holds beside the texts; a little is added for tokens that only some texts need.
        self._around_reading = len(row) + 8
        self._around_drawing = layout.drawing_length("a") + 8

    def problem(
        self, texts: Mapping[str, str], *, max_length: int | None = None, num_images: int = 1
    ) -> tuple[str, str] | None:
        """Why texts cannot be laid out, with what to do about it; None if they can.

        Args:
            texts: "question", "answer" and "caption", each perhaps empty.
            max_length: longest row in tokens; the model's positions are a limit beside it.
            num_images: pictures that the question shows.
        """
        for field, text in texts.items():
            mark = self._mark_in(text)
            if mark is not None:
                return (
                    f"{mark!r} in its {field}",
                    "this is a token of the model's own: remove it from the text (a picture is "
                    "added for you)",
                )
        for whose, limit, size in (
            ("max_length", max_length, len),
            ("the model's positions", self.max_positions, self.layout.num_positions),
        ):
            if limit is None:
                continue
            if (length := self._longest(texts, limit, num_images, size)) > limit:
                return (
                    f"too many tokens ({whose}: {limit})",
                    f"it needs {length}, its pictures included; shorten its texts",
                )
        return None

    def _mark_in(self, text: str) -> str | None:
        if not any(first in text for first in self._first):
            return None
        return next((mark for mark in self.marks if mark in text), None)

    def _longest(
        self,
        texts: Mapping[str, str],
        limit: int,
        num_images: int,
        size: Callable[[Sequence[int]], int],
    ) -> int:
        """Size of the longer row; rows that are surely short are not tokenized, and count 0.

        No row takes more positions than it has tokens, so the bound below holds for both.
        """
        question, answer = texts.get("question", ""), texts.get("answer", "")
        caption, length = texts.get("caption", ""), 0
        most = self._around_reading * max(1, num_images) + _bytes(question) + _bytes(answer)
        if answer and most > limit:
            length = size(self.layout.reading_row(question, answer, num_images))
        if length <= limit and caption and self._around_drawing + _bytes(caption) > limit:
            row = self.layout.prompt_ids(caption)
            length = size(row) + self.layout.drawing_length(caption) - len(row)
        return length


def _bytes(text: str) -> int:
    """No tokenizer makes more tokens of a text than it has bytes."""
    return len(text.encode("utf-8", "surrogatepass"))
