"""The VQA score of one question: answers brought to one form, then a leave-one-out vote.

Three references differ in when and how they normalise; their tables are in ``words.py``:

    official    VQA's own ``vqaEval.py``: not at all where the ten raw answers agree
    lmms_eval   always
    textvqa     always, with MMF's extra step (BAGEL, InternVL, TorchUMM's UniGame script)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from unigame.evaluation.tasks.vqav2 import words as tables

INSTRUCTION = "Answer the question using a single word or phrase."

Variant = Literal["lmms_eval", "official", "textvqa"]

_ECHOES = ("answer:", "answer is", "the answer is", "final answer:")
_SENTENCE_ENDS = (". ", "! ", "? ")
_LOOSE_ENDS = " .,:;"


@lru_cache(maxsize=1 << 16)  # a few thousand answers make up most of two million annotations
def normalise(text: str, variant: Variant = "lmms_eval") -> str:
    """An answer or a reply in the form in which it is compared."""
    if variant == "textvqa":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    comma = tables.COMMA_OFFICIAL if variant == "official" else tables.COMMA_LMMS_EVAL
    text = _one_line(text)
    # Both tests look at the text as it came, so that the order of the marks decides nothing; one
    # comma within a number makes every mark vanish instead of leaving a blank.
    within_number = comma.search(text) is not None
    plain = text
    for mark in tables.PUNCTUATION:
        by_a_blank = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if by_a_blank or within_number else " ")
    plain = tables.PERIOD.sub("", plain, count=tables.MAX_PERIODS)
    words = (tables.NUMBER_WORDS.get(word, word) for word in plain.lower().split())
    return " ".join(tables.CONTRACTIONS.get(w, w) for w in words if w not in tables.ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def soft_score(
    prediction: str,
    answers: Sequence[str | Mapping[str, Any]],
    variant: Variant = "lmms_eval",
) -> float:
    """The share of the score that a reply earns, in [0, 1].

    Each annotator in turn is left out; the reply earns a third for every other annotator who gave
    it, at most 1; the mean over annotators counts. Of ten, 1, 2, 3 and 4 who agree earn 0.3, 0.6,
    0.9 and 1.

    Args:
        prediction: the model's reply.
        answers: what the annotators said: texts, which count as different annotators, or mappings
            with ``"answer"``. Equal mappings count as one annotator and are left out together, as
            in the references; an ``answer_id`` keeps them apart. (``textvqa`` goes by position.)
        variant: the reference that is followed.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("a VQA score needs the annotators' answers")
    texts = [_one_line(a if isinstance(a, str) else a["answer"]) for a in answers]
    said = _one_line(prediction)
    if variant != "official" or len(set(texts)) > 1:
        said, texts = normalise(said, variant), [normalise(text, variant) for text in texts]
    agreeing: list[Any] = [
        (number, text)
        if variant == "textvqa" or isinstance(answer, str)
        else {**answer, "answer": text}
        for number, (answer, text) in enumerate(zip(answers, texts, strict=True))
        if text == said
    ]
    earned = (len(texts) - len(agreeing)) * min(1.0, len(agreeing) / 3)
    earned += sum(min(1.0, (len(agreeing) - agreeing.count(vote)) / 3) for vote in agreeing)
    return earned / len(texts)


def clean_reply(reply: str) -> str:
    """What TorchUMM's UniGame script cuts a reply down to before it scores it (``textvqa``)."""
    # The two marks are blanks of byte-level and SentencePiece tokenizers.
    text = " ".join(reply.replace("Ġ", " ").replace("▁", " ").split())
    for echo in _ECHOES:  # one after the other, so "Answer: the answer is red" loses both
        if text.lower().startswith(echo):
            text = text[len(echo) :].strip(" :")
    instruction_at = text.lower().find(INSTRUCTION.lower())
    if instruction_at >= 0:
        text = text[:instruction_at].strip(_LOOSE_ENDS)
    for end in _SENTENCE_ENDS:
        if end in text:
            text = text.split(end, 1)[0].strip(_LOOSE_ENDS)
            break
    return text
