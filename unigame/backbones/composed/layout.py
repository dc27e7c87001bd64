"""Token layout of composed models: the one place that turns text into ids, in every use.

Understanding: the chat template's user turn with a picture before the question, and the answer
where the template puts it. Drawing: the user turn with the prompt alone, and then N queries; the
empty prompt is the unconditional branch of guidance. Texts come from the model's own chat template.
What a template writes before an answer (an empty thinking block, a channel mark) belongs to the
prompt, in training as at inference.

Places of image tokens and queries hold the ids ``IMAGE`` and ``QUERY``, which no vocabulary has.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from unigame.backbones.common.layout import TokenLayout, special_marks, turn_contents
from unigame.backbones.composed.vision import Reader
from unigame.errors import UserError
from unigame.turns import split_turns

IMAGE, QUERY = -1, -2
# Texts that no question holds; they only mark a place in a rendered template.
_ANSWER_MARK, _IMAGE_MARK = "\u241fanswer\u241f", "\u241fimage\u241f"


class ComposedLayout(TokenLayout):
    """Prompts and answers as token ids, and the rows that are drawn from.

    Args:
        tokenizer: of the language model, with a chat template.
        reader: knows the image tokens.
        num_queries: places behind a drawing prompt.
        end_ids: further ids that end an answer.

    Raises:
        UserError: the tokenizer has no chat template.
    """

    image_token_id = IMAGE

    def __init__(
        self, tokenizer: Any, reader: Reader, num_queries: int, end_ids: Sequence[int] = ()
    ) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                "the language model's tokenizer has no chat template, so prompts cannot be laid "
                "out; use an instruction-tuned model"
            )
        super().__init__(tokenizer)
        self.reader, self.num_queries = reader, num_queries
        self.num_image_tokens = reader.num_tokens
        self.end_ids = {self.eos_id, *end_ids}
        self.picture_mark = _IMAGE_MARK
        if reader.image_token_id is not None:
            self.picture_mark = tokenizer.convert_ids_to_tokens(reader.image_token_id)

    def question_ids(self, question: str, num_images: int = 1) -> list[int]:
        return self._picture_ids(self._turns(question, num_images)[0], question, num_images)

    def reconstruction_ids(self, template: str) -> list[int]:
        # Without what a template writes before an answer: a drawing is none.
        user = {"role": "user", "content": self._content(*turn_contents(template)[0])}
        text = self._render([user], add_generation_prompt=True)
        return [*self._picture_ids(text, template), *self.drawing_start()]

    def _picture_ids(self, text: str, question: str, num_images: int = 1) -> list[int]:
        """A rendered prompt as tokens, with the places of its pictures."""
        if text.count(self.picture_mark) != num_images:
            raise self.held_picture(question)
        if self.reader.image_token_id is None:
            first, *others = text.split(self.picture_mark)
            ids = self._tokenize(first)
            for piece in others:
                rest = self.tokenizer(piece, add_special_tokens=False)["input_ids"]
                ids += [*[IMAGE] * self.reader.num_tokens, *rest]
            return ids
        ids = self._tokenize(self.reader.expand(text, self.tokenizer))
        return [IMAGE if token == self.reader.image_token_id else token for token in ids]

    def answer_ids(self, question: str, answer: str, num_images: int = 1) -> list[int]:
        _, before, after = self._turns(question, num_images)
        text = before + answer.strip() + after
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ends = [place for place, token in enumerate(ids) if token in self.end_ids]
        return ids[: ends[0] + 1] if ends else [*ids, self.eos_id]

    def prompt_ids(self, prompt: str) -> list[int]:
        text = self._render(self._user(prompt), add_generation_prompt=True)
        return [*self._tokenize(text), *self.drawing_start()]

    def drawing_start(self) -> list[int]:
        return [QUERY] * self.num_queries

    # No shared_start: behind a shared picture, positions along several axes would be off.

    def axes(self, row: Sequence[int]) -> list[list[int]] | None:
        return self.reader.positions([token == IMAGE for token in row])

    def drawing_length(self, prompt: str) -> int:
        return len(self.prompt_ids(prompt))  # the picture is no part of the row

    def marks(self) -> set[str]:
        return special_marks(self.tokenizer) | {self.picture_mark, _ANSWER_MARK, _IMAGE_MARK}

    # ---- inside --------------------------------------------------------------------------------
    def _turns(self, question: str, num_images: int) -> tuple[str, str, str]:
        """The prompt, and the text around an answer behind it."""
        speakers = ("user", "assistant")
        user = [
            {"role": speakers[number % 2], "content": self._content(*parts)}
            for number, parts in enumerate(turn_contents(question, num_images))
        ]
        system = split_turns(question).system
        if system and self._takes_system:
            user.insert(0, {"role": "system", "content": self._content(_said(system))})
        prompt = self._render(user, add_generation_prompt=True)
        reply = {"role": "assistant", "content": self._content(_said(_ANSWER_MARK))}
        whole = self._render([*user, reply])
        before, _, after = whole.partition(_ANSWER_MARK)
        if not before.startswith(prompt):
            return prompt, "", after
        lead = before[len(prompt) :]
        return (before, "", after) if lead.strip() else (prompt, lead, after)

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the chat template has a place for a system prompt; some refuse it."""
        system = {"role": "system", "content": self._content(_said(_ANSWER_MARK))}
        try:
            return _ANSWER_MARK in self._render([system, *self._user("a")])
        except TemplateError:
            return False

    def _user(self, text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self._content(_said(text))}]

    def _content(self, *parts: dict[str, str]) -> Any:
        """A list of parts for a VLM's template, a string for an LLM's."""
        if self.reader.image_token_id is None:
            return "\n".join(part.get("text", self.picture_mark) for part in parts)
        return list(parts)

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        )

    def _tokenize(self, text: str) -> list[int]:
        """As processors do: special tokens are added unless the template wrote them."""
        bos = self.tokenizer.bos_token
        written = bos is not None and text.startswith(bos)
        return list(self.tokenizer(text, add_special_tokens=not written)["input_ids"])


def _said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
