r"""Token layout of Janus: the one place that turns text into ids, for training and for inference.

Understanding: ``<bos><|User|>: <begin_of_image>[N placeholders]<end_of_image>\n{question}\n\n
<|Assistant|>:`` and then `` {answer}<eos>``. Generation: ``<bos><|User|>: {prompt}\n\n
<|Assistant|>:<begin_of_image>`` and then N image codes. The text comes from the checkpoint's own
chat template; the N placeholders are later *replaced* by image features, never kept beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import JanusProcessor
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from unigame.errors import UserError


@dataclass
class PaddedTokens:
    """A batch of token rows. ``L`` is the longest row.

    Attributes:
        ids_BL: token ids; pad id where there is no token.
        mask_BL: 1 at tokens, 0 at padding.
        positions_BL: rotary position of each token, counted from its row's first token.
    """

    ids_BL: Tensor
    mask_BL: Tensor
    positions_BL: Tensor


class JanusLayout:
    """Prompts and answers as token ids, exactly as ``JanusProcessor`` makes them.

    Args:
        processor: a ``JanusProcessor`` with a chat template.

    Raises:
        UserError: the processor has no chat template.
    """

    def __init__(self, processor: JanusProcessor) -> None:
        if not processor.chat_template:
            raise UserError(
                "the checkpoint's processor has no chat template, so prompts cannot be laid out; "
                "use a checkpoint in the Hub format, such as deepseek-community/Janus-Pro-1B"
            )
        tokenizer = processor.tokenizer
        self.processor = processor
        self.tokenizer = tokenizer
        self.num_image_tokens = int(processor.num_image_tokens)
        self.image_token_id = int(tokenizer.convert_tokens_to_ids(processor.image_token))
        self.begin_image_id = int(tokenizer.convert_tokens_to_ids(processor.image_start_token))
        self.bos_id, self.eos_id = tokenizer.bos_token_id, int(tokenizer.eos_token_id)
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    # ---- understanding -------------------------------------------------------------------------
    def question_text(self, question: str) -> str:
        """The prompt of a question about one image, with a single unexpanded placeholder."""
        return self._system() + self._render(_question(question), add_generation_prompt=True)

    def question_ids(self, question: str) -> list[int]:
        """Token ids of the prompt, its N image placeholders included.

        Raises:
            UserError: the question itself holds an image placeholder.
        """
        processor = self.processor
        image = processor.image_token * self.num_image_tokens
        expanded = f"{processor.image_start_token}{image}{processor.image_end_token}"
        text = self.question_text(question).replace(processor.image_token, expanded)
        ids = self._tokenize(text)
        if ids.count(self.image_token_id) != self.num_image_tokens:
            raise UserError(
                f"question {question!r} holds the image placeholder {processor.image_token!r}, "
                "which stands for a picture; remove it from the text, the image is added for you"
            )
        return ids

    def answer_ids(self, question: str, answer: str) -> list[int]:
        """Token ids of the answer as it follows the prompt, with the end mark."""
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]}
        prompt = self.question_text(question)
        whole = self._system() + self._render([*_question(question), reply])
        prompt_ids, whole_ids = self._tokenize(prompt), self._tokenize(whole)
        if whole_ids[: len(prompt_ids)] == prompt_ids:
            return [*whole_ids[len(prompt_ids) :], self.eos_id]
        # A tokenizer that merges across the border: keep the prompt that inference will see.
        rest = self.tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
        return [*rest, self.eos_id]

    # ---- generation ----------------------------------------------------------------------------
    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a text -> image prompt, up to and with begin-of-image."""
        content = [{"type": "text", "text": prompt}]
        text = self._render([{"role": "user", "content": content}], add_generation_prompt=True)
        return [*self._tokenize(text), self.begin_image_id]

    def unconditional(self, ids_BL: Tensor) -> Tensor:
        """The same rows without their text, for classifier-free guidance as transformers has it."""
        keep = (ids_BL == self.bos_id) | (ids_BL == self.begin_image_id)
        return ids_BL.masked_fill(~keep, self.pad_id)

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

    def _system(self) -> str:
        return DEFAULT_SYSTEM_PROMPT if self.processor.use_default_system_prompt else ""

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        return str(
            self.processor.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        )

    def _tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])


def _question(question: str) -> list[dict[str, Any]]:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]
