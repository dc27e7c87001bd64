"""Token layout of composed models: the one place that turns text into ids, in every use.

Understanding: the chat template's user turn with a picture before the question, and the answer
where the template puts it. Drawing: the user turn with the prompt alone, and then N queries. Texts
come from the model's own chat template. What a template writes before an answer (an empty thinking
block, a channel mark) belongs to the prompt, in training as at inference.

Places of image tokens and queries hold the ids ``IMAGE`` and ``QUERY``, which no vocabulary has.
Shape suffixes: B samples, L tokens of the padded rows, A axes of a rotary position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from unigame.backbones.common.layout import PaddedTokens
from unigame.backbones.common.text_rules import marks_of
from unigame.backbones.composed.vision import Reader
from unigame.errors import UserError

IMAGE, QUERY = -1, -2
# Texts that no question holds; they only mark a place in a rendered template.
_ANSWER_MARK, _IMAGE_MARK = "\u241fanswer\u241f", "\u241fimage\u241f"


class ComposedLayout:
    """Prompts and answers as token ids: a ``ReadingLayout``, and the rows that are drawn from.

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
        self.tokenizer, self.reader, self.num_queries = tokenizer, reader, num_queries
        self.eos_id = int(tokenizer.eos_token_id)
        self.end_ids = {self.eos_id, *end_ids}
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.image_mark = _IMAGE_MARK
        if reader.image_token_id is not None:
            self.image_mark = tokenizer.convert_ids_to_tokens(reader.image_token_id)

    # ---- understanding -------------------------------------------------------------------------
    def question_ids(self, question: str, num_images: int = 1) -> list[int]:
        """Token ids of a question about one picture, its N image places included.

        Raises:
            UserError: the question itself holds the image placeholder.
            ValueError: another number of pictures than one.
        """
        if num_images != 1:
            raise ValueError(f"a composed model is shown one picture a question, not {num_images}")
        return self._with_image(self._turns(question)[0], question)

    def answer_ids(self, question: str, answer: str) -> list[int]:
        """Token ids of the answer as it follows the prompt, with its end mark."""
        _, before, after = self._turns(question)
        text = before + answer.strip() + after
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ends = [place for place, token in enumerate(ids) if token in self.end_ids]
        return ids[: ends[0] + 1] if ends else [*ids, self.eos_id]

    def shared_start(self, rows: Sequence[Sequence[int]]) -> int:
        """No tokens: behind a shared picture, positions along several axes would be off."""
        return 0

    def _turns(self, question: str) -> tuple[str, str, str]:
        """The prompt, and the text around an answer behind it."""
        user = self._user(question, with_image=True)
        prompt = self._render(user, add_generation_prompt=True)
        reply = {"role": "assistant", "content": self._content(_ANSWER_MARK)}
        whole = self._render([*user, reply])
        before, _, after = whole.partition(_ANSWER_MARK)
        if not before.startswith(prompt):
            return prompt, "", after
        lead = before[len(prompt) :]
        return (before, "", after) if lead.strip() else (prompt, lead, after)

    def _with_image(self, text: str, question: str) -> list[int]:
        if text.count(self.image_mark) != 1:
            raise UserError(
                f"question {question!r} holds the image placeholder {self.image_mark!r}, which "
                "stands for a picture; remove it from the text, the image is added for you"
            )
        if self.reader.image_token_id is None:
            before, _, after = text.partition(self.image_mark)
            rest = self.tokenizer(after, add_special_tokens=False)["input_ids"]
            return [*self._tokenize(before), *[IMAGE] * self.reader.num_tokens, *rest]
        ids = self._tokenize(self.reader.expand(text, self.tokenizer))
        return [IMAGE if token == self.reader.image_token_id else token for token in ids]

    # ---- drawing -------------------------------------------------------------------------------
    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a text -> image prompt and the places of the queries.

        The empty prompt is the unconditional branch of guidance.
        """
        text = self._render(self._user(prompt, with_image=False), add_generation_prompt=True)
        return [*self._tokenize(text), *[QUERY] * self.num_queries]

    def reading_length(self, question: str, answer: str) -> int:
        """Tokens of picture, question and answer, all marks included."""
        return len(self.question_ids(question)) + len(self.answer_ids(question, answer))

    def drawing_length(self, prompt: str) -> int:
        """Tokens of a prompt and the queries behind it; the picture is no part of the row."""
        return len(self.prompt_ids(prompt))

    def marks(self) -> set[str]:
        """Strings that no text may hold: the tokenizer, or this layout, reads them as marks."""
        return marks_of(self.tokenizer, self.image_mark, _ANSWER_MARK, _IMAGE_MARK)

    # ---- batches -------------------------------------------------------------------------------
    def pad(self, rows: Sequence[Sequence[int]], side: str, device: torch.device) -> PaddedTokens:
        """Rows of ids -> a padded batch; ``side`` is "right" in training, "left" in generation."""
        length = max(len(row) for row in rows)
        ids, mask, positions = [], [], []
        for row in rows:
            gap = length - len(row)
            before, after = (gap, 0) if side == "left" else (0, gap)
            ids.append([self.pad_id] * before + list(row) + [self.pad_id] * after)
            mask.append([0] * before + [1] * len(row) + [0] * after)
            axes = self.reader.positions([token == IMAGE for token in row])
            axes = axes or [list(range(len(row)))]
            positions.append([[0] * before + axis + [0] * after for axis in axes])
        positions_ABL = torch.tensor(positions, device=device).transpose(0, 1)
        return PaddedTokens(
            torch.tensor(ids, device=device),
            torch.tensor(mask, device=device),
            positions_ABL.amax(0),
            positions_ABL if len(positions_ABL) > 1 else None,
        )

    # ---- inside --------------------------------------------------------------------------------
    def _user(self, text: str, with_image: bool) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self._content(text, with_image)}]

    def _content(self, text: str, with_image: bool = False) -> Any:
        """A list of parts for a VLM's template, a string for an LLM's."""
        if self.reader.image_token_id is None:
            return f"{self.image_mark}\n{text}" if with_image else text
        parts = [{"type": "image"}] if with_image else []
        return [*parts, {"type": "text", "text": text}]

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
