"""Token layout of Chameleon: the one place that turns text into ids, in training and inference.

Understanding: ``<s><racm3:break>[N placeholders]<eoss>{question}<reserved08706>`` and then
``{answer}</s>``, where ``<reserved08706>`` ends a turn. Generation: ``<s>{prompt}<reserved08706>
<racm3:break>`` and then N image codes. That is what ``ChameleonProcessor`` makes of
``<image>{question}`` and ``{prompt}``; the family has no chat template. The N placeholders are
later *replaced* by the embeddings of the picture's codes.
"""

from __future__ import annotations

from transformers import ChameleonProcessor

from unigame.backbones.common.layout import ChatLayout
from unigame.errors import UserError


class ChameleonLayout(ChatLayout):
    """Prompts and answers as token ids, exactly as ``ChameleonProcessor`` makes them.

    Args:
        processor: whose tokenizer has an end-of-turn token (``sep_token``).

    Raises:
        UserError: it has none, or no marks around pictures.
    """

    needs_template = False

    def __init__(self, processor: ChameleonProcessor) -> None:
        super().__init__(processor, int(processor.image_seq_length), "facebook/chameleon-7b")
        tokenizer = self.tokenizer
        marks = {
            "image_token": processor.image_token,
            "image start": processor.image_start_token,
            "image end": processor.image_end_token,
            "sep_token": tokenizer.sep_token,
            "bos_token": tokenizer.bos_token,
        }
        known = tokenizer.get_vocab()
        for name, mark in marks.items():
            if mark not in known:
                raise UserError(
                    f"the tokenizer has no {name} token ({mark!r}); load model and processor from "
                    "one Chameleon checkpoint, such as facebook/chameleon-7b"
                )
        self.turn_end = str(tokenizer.sep_token)
        self.turn_end_id = int(known[self.turn_end])
        self.begin_image_id = int(known[processor.image_start_token])

    def question_text(self, question: str, num_images: int = 1) -> str:
        turns = [
            "".join(
                self.processor.image_token if part["type"] == "image" else part["text"]
                for part in turn["content"]
            )
            for turn in self.turns(question, num_images)
        ]
        return "".join(turn + self.turn_end for turn in turns)

    def reply_text(self, question: str, answer: str, num_images: int = 1) -> str:
        return self.question_text(question, num_images) + answer.strip()

    def prompt_ids(self, prompt: str) -> list[int]:
        return [*self.tokenize(prompt + self.turn_end), self.begin_image_id]

    def drawing_start(self) -> list[int]:
        return [self.begin_image_id]
