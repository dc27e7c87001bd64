"""Questions that the trained model's own text branch writes from a caption, noun phrase by phrase.

It is asked twice for each phrase, with LoRA off, by the two templates below: for a question with
yes or no, and for an open one. A reply is taken only in the form that it was asked for; everything
else counts as unparsed. What it answers *from the caption* is the answer; the game then sees
whether it answers the same *from the picture*. Open questions get the field's usual instruction, so
that a reply is as short as the answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from unigame.methods.drawings.phrases import noun_phrases
from unigame.methods.drawings.texts import QA
from unigame.system.at_once import AtOnce

if TYPE_CHECKING:
    from unigame.backbones.base import Backbone

YES_NO = (
    'A picture is described so: "{caption}"\n'
    'Write one question about "{phrase}" that has the answer yes or no for this picture, and the '
    "answer. Write exactly two lines:\nQuestion: ...?\nAnswer: yes or no"
)
OPEN = (
    'A picture is described so: "{caption}"\n'
    'Write one question about "{phrase}" that the description answers in one to three words, and '
    "the answer. Write exactly two lines:\nQuestion: ...?\nAnswer: ..."
)
TEMPLATES = (YES_NO, OPEN)
_FORM = re.compile(r"question:\s*([^\n?]{3,160}\?)\s+answer:\s*([^\n]{1,60}?)\.?\s*", re.I)
LONGEST_ANSWER = 3  # words
SHORTLY = " Answer the question using a single word or phrase."
"""What ends an open question. A model tuned to chat says "There are two dogs in the picture." to a
bare one: cut after a few tokens, and too long to agree with "2".

It is added where a question is written, not where one is asked. So the file holds what is asked,
word for word; a run that goes on with lines written before, without it, asks those as they stand;
and ``imagine`` learns the short answer to the instruction, as benchmarks ask, and not that a bare
question wants one word."""


def parse(reply: str, yes_no: bool) -> QA | None:
    """The question and answer of a reply in the form that was asked for; None: it is not.

    Args:
        reply: the model's.
        yes_no: whether only yes and no are answers.
    """
    found = _FORM.fullmatch(reply.strip())
    if found is None:
        return None
    question, answer = found[1].strip(), found[2].strip()
    is_yes_no = answer.lower() in ("yes", "no")
    if yes_no != is_yes_no or not 0 < len(answer.split()) <= LONGEST_ANSWER:
        return None
    return question, answer.lower() if is_yes_no else answer


class WrittenQuestions:
    """Questions that some model of text writes.

    Args:
        reply: texts -> its replies.
        writer: which model it is.

    Attributes:
        asked: how often it was asked.
        unparsed: how many of its replies were no question and answer.
        failed: the same, of each caption of the last call.
        key: of the writer and the templates: others would write other questions.
    """

    keeps = True
    """Its questions are kept in a file, and not written twice."""

    def __init__(self, reply: Callable[[Sequence[str]], Sequence[str]], writer: str = "") -> None:
        self.reply = reply
        self.asked = self.unparsed = 0
        self.failed: list[int] = []
        # Without SHORTLY: what was written before it came is still asked, and not paid for twice.
        self.key = hashlib.sha256("\n".join((writer, *TEMPLATES)).encode()).hexdigest()[:16]

    def __call__(self, captions: Sequence[str]) -> list[list[QA]]:
        """Up to two questions for each noun phrase of each caption; open ones with ``SHORTLY``."""
        orders = [
            (number, template, phrase)
            for number, caption in enumerate(captions)
            for phrase in noun_phrases(caption) or [caption]
            for template in TEMPLATES
        ]
        texts = [
            template.format(caption=captions[number], phrase=phrase)
            for number, template, phrase in orders
        ]
        made: list[list[QA]] = [[] for _ in captions]
        self.failed = [0] * len(captions)
        for (number, template, _), reply in zip(orders, self.reply(texts), strict=True):
            self.asked += 1
            pair = parse(reply, template is YES_NO)
            if pair is None:
                self.unparsed += 1
                self.failed[number] += 1
                continue
            question, answer = pair
            if template is OPEN:
                question += SHORTLY
            if (question, answer) not in made[number]:
                made[number].append((question, answer))
        return made


class ModelQuestions(WrittenQuestions):
    """By the trained model itself, as it was before training.

    Args:
        backbone: the model; it must have ``reply``.
        settings: the method's; ``draw_batch`` texts are written at a time.

    Attributes:
        at_once: the same number; a method puts its own here, which may have been halved.
    """

    def __init__(self, backbone: Backbone, settings: Any) -> None:
        # It cannot know here whether processes compute together, and then none may try again.
        self.backbone, self.at_once = backbone, AtOnce(settings.draw_batch, halves=False)
        super().__init__(self._replies, f"model {backbone.weights_digest()}")

    @torch.no_grad()
    def _replies(self, texts: Sequence[str]) -> list[str]:
        with self.backbone.lora_disabled():
            return self.at_once.each(texts, self.backbone.reply)
