r"""Token layout of Emu3: the one place that turns text into ids, for training and for inference.

A picture is a grid of h x w codes in the text itself, as ``Emu3Processor`` writes it::

    <|image start|>h*w<|image token|> [w codes, <|extra_200|>] x h <|extra_201|><|image end|>

``<|extra_200|>`` ends a row, ``<|extra_201|>`` the picture. Understanding: ``<bos>{system prompt}
USER: {picture}{question} ASSISTANT:`` and then `` {answer}<eos>``, by the chat template. Drawing:
``<bos>{prompt}<|image start|>h*w<|image token|>`` and then codes with their row ends. The processor
has placeholders at row ends too, which the model's forward pass fills with the row end's embedding;
here the row end's id stands there from the beginning, so N placeholders are left for N codes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from unigame.backbones.common.layout import ChatLayout, Message
from unigame.errors import UserError
from unigame.turns import split_turns

ROW_END = "<|extra_200|>"
SYSTEM_PROMPT = "You are a helpful assistant."


def picture_side(processor: Any) -> int:
    """Side in px of the square that the processor makes of a small square picture.

    Emu3 takes pictures of many sizes; a backbone has one. It is the smallest that the processor
    itself would make: the side of ``min_pixels``, rounded up to whole tokens.
    """
    patch = int(processor.downsample_ratio)
    return math.ceil(math.sqrt(processor.image_processor.min_pixels) / patch) * patch


class Emu3Layout(ChatLayout):
    """Prompts, answers and grids of codes as token ids, exactly as ``Emu3Processor`` makes them.

    Args:
        processor: an ``Emu3Processor`` with a chat template.
        grid: h = w, codes along a side of the picture.

    Raises:
        UserError: the processor has no chat template, or its tokenizer no row end.
    """

    def __init__(self, processor: Any, grid: int) -> None:
        super().__init__(processor, grid**2, "BAAI/Emu3-Chat-hf")
        self.grid = grid
        row_end = self.tokenizer.get_vocab().get(ROW_END)
        if row_end is None:
            raise UserError(
                f"the tokenizer has no token {ROW_END!r}, which ends each row of a picture; use "
                "the tokenizer of an Emu3 checkpoint in the Hub format, such as BAAI/Emu3-Chat-hf"
            )
        self.row_end_id = int(row_end)

    @property
    def image_span(self) -> int:
        return self.grid * (self.grid + 1)

    def opening(self) -> str:
        # The begin mark, which the processor writes and the tokenizer does not.
        return str(self.processor.bos_token)

    def turns(self, question: str, num_images: int = 1) -> list[Message]:
        # With the system prompt that Emu3-Chat was tuned on, unless the question brings its own.
        said = split_turns(question).system or SYSTEM_PROMPT
        system = {"role": "system", "content": [{"type": "text", "text": said}]}
        return [system, *super().turns(question, num_images)]

    def reply_text(self, question: str, answer: str, num_images: int = 1) -> str:
        # Without the space that the template adds: a model that had learned it would have to say it
        # before its end mark.
        return super().reply_text(question, answer, num_images).rstrip()

    def picture_text(self) -> str:
        row = self.processor.image_token * self.grid + ROW_END
        end = f"{self.processor.eof_token}{self.processor.image_end_token}"
        return f"{self._picture_start()}{row * self.grid}{end}"

    def prompt_ids(self, prompt: str) -> list[int]:
        return self.tokenize(f"{self.opening()}{prompt}{self._picture_start()}")

    def drawing_start(self) -> list[int]:
        return self.tokenize(self._picture_start())

    def grid_ids(self, tokens_BN: Tensor) -> Tensor:
        """Ids of N codes in the vocabulary -> the same with row ends, (B, h * (w + 1))."""
        rows = tokens_BN.unflatten(1, (self.grid, self.grid))
        return torch.nn.functional.pad(rows, (0, 1), value=self.row_end_id).flatten(1)

    def predicting(self) -> Tensor:
        """Places of the N states that predict codes, counted from the end of the prompt, (N,)."""
        places = torch.arange(self.image_span).unflatten(0, (self.grid, self.grid + 1))
        return places[:, :-1].flatten()  # what stands before a code predicts it; a row end is given

    def _picture_start(self) -> str:
        processor = self.processor
        size = f"{self.grid}*{self.grid}"
        return f"{processor.image_start_token}{size}{processor.fake_token_around_image}"
