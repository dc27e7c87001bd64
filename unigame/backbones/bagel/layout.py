"""Token layout of BAGEL: the one place that turns text into ids, in training and inference.

A text is ``<|im_start|>{text}<|im_end|>``, whoever says it; there is no chat template. A picture is
``<|vision_start|>[places]<|vision_end|>``. So a row that is read is

    [system prompt] picture question [answer, question ...] <|im_start|>{answer}<|im_end|>

where everything up to the last ``<|im_start|>`` is the prompt, and a row that is drawn is

    <|im_start|>{caption}<|im_end|> <|vision_start|>[latents]<|vision_end|>

Without a caption it is the picture alone, against which guidance goes; in reconstruction a picture
that is read stands before a text of its own. A picture, its marks
included, takes one rotary position, and so does each token of text.

Places of image tokens and latents hold the ids ``IMAGE`` and ``LATENT``, which no vocabulary has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from unigame.backbones.common.layout import (
    PaddedTokens,
    TokenLayout,
    special_marks,
    turn_contents,
)
from unigame.errors import UserError
from unigame.turns import split_turns

IMAGE, LATENT = -1, -2
TEXT_START, TEXT_END = "<|im_start|>", "<|im_end|>"
PICTURE_START, PICTURE_END = "<|vision_start|>", "<|vision_end|>"


class BagelLayout(TokenLayout):
    """Prompts and answers as token ids, and the rows that are drawn from.

    Args:
        tokenizer: of the checkpoint.
        num_image_tokens: N of a picture that is read.
        num_latents: N of a picture that is drawn.

    Raises:
        UserError: the tokenizer lacks one of the four marks.
    """

    image_token_id = IMAGE
    picture_mark = PICTURE_START

    def __init__(self, tokenizer: Any, num_image_tokens: int, num_latents: int) -> None:
        known = tokenizer.get_vocab()
        for mark in (TEXT_START, TEXT_END, PICTURE_START, PICTURE_END):
            if mark not in known:
                raise UserError(
                    f"the tokenizer has no token {mark!r}, which BAGEL lays texts and pictures out "
                    "by; copy the tokenizer's files of the published folder"
                )
        if tokenizer.eos_token_id is None:
            tokenizer.eos_token = TEXT_END
        super().__init__(tokenizer)
        self.num_image_tokens, self.num_latents = num_image_tokens, num_latents
        self.bos_id, self.eos_id = int(known[TEXT_START]), int(known[TEXT_END])
        self.start_id, self.end_id = int(known[PICTURE_START]), int(known[PICTURE_END])

    # ---- rows ----------------------------------------------------------------------------------
    def question_ids(self, question: str, num_images: int = 1) -> list[int]:
        asked = split_turns(question)
        ids = self._said(asked.system) if asked.system else []
        for contents in turn_contents(question, num_images):
            for part in contents:
                if part["type"] == "image":
                    ids += self._picture(IMAGE, self.num_image_tokens)
                else:
                    ids += self._said(part["text"])
        self._require_pictures(ids, num_images, "question", question)
        return [*ids, self.bos_id]

    def answer_ids(self, question: str, answer: str, num_images: int = 1) -> list[int]:
        return [*self._tokenize(answer.strip()), self.eos_id]

    def prompt_ids(self, prompt: str) -> list[int]:
        """See ``TokenLayout.prompt_ids``.

        Raises:
            UserError: the prompt itself holds the mark of a picture.
        """
        ids = [*(self._said(prompt) if prompt.strip() else []), *self.drawing_start()]
        self._require_pictures(ids, 1, "drawing prompt", prompt)
        return ids

    def drawing_start(self) -> list[int]:
        return self._picture(LATENT, self.num_latents)

    def reconstruction_ids(self, template: str) -> list[int]:
        # Without the mark that begins an answer: what follows is a picture.
        return [*self.question_ids(template)[:-1], *self.drawing_start()]

    # No shared_start: behind a shared picture, positions would not go on where they should.

    def drawing_length(self, prompt: str) -> int:
        return len(self.prompt_ids(prompt))

    def marks(self) -> set[str]:
        return special_marks(self.tokenizer) | {TEXT_START, TEXT_END, PICTURE_START, PICTURE_END}

    # ---- positions -----------------------------------------------------------------------------
    def num_positions(self, row: Sequence[int]) -> int:
        return self.positions(row)[-1] + 1

    def positions(self, row: Sequence[int]) -> list[int]:
        """Rotary positions of a row, which are also the numbers of its blocks."""
        found, last, inside = [], -1, False
        for token in row:
            last += not inside
            if token == self.start_id:
                inside = True
            elif token == self.end_id:
                inside = False
            found.append(last)
        return found

    def pad(self, rows: Sequence[Sequence[int]], side: str, device: torch.device) -> PaddedTokens:
        tokens = super().pad(rows, side, device)
        length = tokens.ids_BL.shape[1]
        filled = []
        for row in rows:
            own, padding = self.positions(row), [0] * (length - len(row))
            filled.append([*padding, *own] if side == "left" else [*own, *padding])
        return PaddedTokens(
            tokens.ids_BL, tokens.mask_BL, torch.tensor(filled, device=tokens.ids_BL.device)
        )

    def latents(self, tokens: PaddedTokens) -> slice:
        """Where the latents of left-padded rows stand: behind them is one mark."""
        end = tokens.ids_BL.shape[1] - 1
        return slice(end - self.num_latents, end)

    # ---- inside --------------------------------------------------------------------------------
    def _require_pictures(self, ids: Sequence[int], count: int, what: str, text: str) -> None:
        """A mark in a text would begin or end a picture, and every later position be another.

        Raises:
            UserError: there are marks of more than ``count`` pictures.
        """
        for mark, token in ((PICTURE_START, self.start_id), (PICTURE_END, self.end_id)):
            if ids.count(token) != count:
                raise self.held_picture(text, what, mark)

    def _said(self, text: str) -> list[int]:
        return [self.bos_id, *self._tokenize(text.strip()), self.eos_id]

    def _picture(self, place: int, count: int) -> list[int]:
        return [self.start_id, *[place] * count, self.end_id]

    def _tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
