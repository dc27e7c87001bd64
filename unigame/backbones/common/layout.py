"""Token rows of autoregressive families: questions, answers, pictures' places and padding.

One class turns text into ids, for training and for inference, from the checkpoint's own chat
template. A family says what one image placeholder expands to, and what a drawing prompt looks like.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unigame.backbones.common.text_rules import marks_of, processor_marks
from unigame.errors import UserError

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


class ChatLayout(ABC):
    """Prompts and answers as token ids, exactly as a processor of transformers makes them.

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
        tokenizer = processor.tokenizer
        self.processor = processor
        self.tokenizer = tokenizer
        self.num_image_tokens = num_image_tokens
        self.image_token_id = int(tokenizer.convert_tokens_to_ids(processor.image_token))
        self.bos_id, self.eos_id = tokenizer.bos_token_id, int(tokenizer.eos_token_id)
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    # ---- what a family says --------------------------------------------------------------------
    @property
    def image_span(self) -> int:
        """Tokens from the first placeholder of a picture to its last one."""
        return self.num_image_tokens

    @abstractmethod
    def picture_text(self) -> str:
        """What the processor puts in the place of one image placeholder."""

    @abstractmethod
    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a text -> image prompt, up to the token that predicts the first code."""

    def opening(self) -> str:
        """Text before the first turn."""
        return ""

    def reply_text(self, question: str, answer: str) -> str:
        """The whole conversation, up to the answer's last word."""
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]}
        return self.opening() + self.render([*self.turns(question), reply])

    def turns(self, question: str, num_images: int = 1) -> list[Message]:
        """The conversation that asks a question about its images."""
        return [{"role": "user", "content": _content(question, num_images)}]

    # ---- understanding -------------------------------------------------------------------------
    def question_text(self, question: str, num_images: int = 1) -> str:
        """The prompt of a question about its images, with one unexpanded placeholder for each."""
        messages = self.turns(question, num_images)
        return self.opening() + self.render(messages, add_generation_prompt=True)

    def question_ids(self, question: str, num_images: int = 1) -> list[int]:
        """Token ids of the prompt, the N placeholders of each image included.

        One image stands before the question. Of several, each stands at its own ``<image k>`` mark
        if the question has as many different marks as images (``picture_order`` says which comes
        where); otherwise all stand before the question.

        Raises:
            UserError: the question itself holds an image placeholder.
        """
        mark = self.processor.image_token
        text = self.question_text(question, num_images).replace(mark, self.picture_text())
        ids = self.tokenize(text)
        if ids.count(self.image_token_id) != num_images * self.num_image_tokens:
            raise UserError(
                f"question {question!r} holds the image placeholder {mark!r}, "
                "which stands for a picture; remove it from the text, the image is added for you"
            )
        return ids

    def answer_ids(self, question: str, answer: str) -> list[int]:
        """Token ids of the answer as it follows the prompt, with the end mark."""
        prompt, whole = self.question_text(question), self.reply_text(question, answer)
        prompt_ids, whole_ids = self.tokenize(prompt), self.tokenize(whole)
        if whole_ids[: len(prompt_ids)] == prompt_ids:
            return [*whole_ids[len(prompt_ids) :], self.eos_id]
        # A tokenizer that merges across the border: keep the prompt that inference will see.
        rest = self.tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
        return [*rest, self.eos_id]

    def shared_start(self, rows: Sequence[Sequence[int]]) -> int:
        """How many tokens all prompts have in common up to the end of their first image; or 0."""
        row = list(rows[0])
        length = row.index(self.image_token_id) + self.image_span
        return length if all(list(other[:length]) == row[:length] for other in rows) else 0

    def reading_length(self, question: str, answer: str) -> int:
        """Tokens of picture, question and answer, all marks included."""
        return len(self.question_ids(question)) + len(self.answer_ids(question, answer))

    def drawing_length(self, prompt: str) -> int:
        """Tokens of a prompt and the picture that is drawn of it."""
        return len(self.prompt_ids(prompt)) + self.image_span

    def marks(self) -> set[str]:
        """Strings that no text may hold: the tokenizer reads them as tokens of its own."""
        return marks_of(self.tokenizer, *processor_marks(self.processor))

    # ---- batches -------------------------------------------------------------------------------
    def pad(self, rows: Sequence[Sequence[int]], side: str, device: torch.device) -> PaddedTokens:
        """Rows of ids -> a padded batch; ``side`` is "right" in training, "left" in generation."""
        length = max(len(row) for row in rows)
        ids, mask = [], []
        for row in rows:
            gap = length - len(row)
            padding, ones, zeros = [self.pad_id] * gap, [1] * len(row), [0] * gap
            ids.append([*padding, *row] if side == "left" else [*row, *padding])
            mask.append([*zeros, *ones] if side == "left" else [*ones, *zeros])
        mask_BL = torch.tensor(mask, device=device)
        positions_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
        return PaddedTokens(torch.tensor(ids, device=device), mask_BL, positions_BL)

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
    image the order is the images' own.
    """
    marks = list(dict.fromkeys(int(number) for number in _IMAGE_MARK.findall(question)))
    if num_images > 1 and len(marks) == num_images:
        return [sorted(marks).index(mark) for mark in marks]
    return list(range(num_images))


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
