"""What a data loader's worker needs of a backbone: its layout and its image processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from unigame.backbones.base import AnswerTokens, PromptTokens

if TYPE_CHECKING:
    from PIL import Image

    from unigame.backbones.common.understanding import ReadingLayout


@dataclass(frozen=True)
class LayoutPreprocessor:
    """The ``Preprocessor`` of a family that lays out its own tokens."""

    layout: ReadingLayout
    pictures: Callable[[Sequence[Image.Image]], Tensor]

    def answer(self, question: str, answer: str) -> AnswerTokens:
        """Question and answer, as inference lays them out."""
        prompt = self.layout.question_ids(question)
        return AnswerTokens(tuple(prompt), tuple(self.layout.answer_ids(question, answer)))

    def prompt(self, text: str) -> PromptTokens:
        """What a picture is drawn of."""
        return PromptTokens(tuple(self.layout.prompt_ids(text)))
