"""Questions about single pictures, from any data: what robustness is measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from PIL import Image

from unigame.data import Record, most_common_answer
from unigame.data.records import num_pictures, pictures_of
from unigame.evaluation.base import Benchmark, Item
from unigame.evaluation.tasks.vqav2.rules import normalise, soft_score


@dataclass(frozen=True)
class Example:
    """One question about one picture.

    Attributes:
        id: unique; randomness and pairing go by it.
        picture: decodes the picture, or raises ``CorruptImage``.
        question: what the model is asked.
        answer: the true answer, which attacks make unlikely.
        answers: of all annotators, where there are several; the default score then is VQA's.
        caption: for the generation path; empty: the question.
        cluster: examples of one picture share their luck.
    """

    id: str
    picture: Callable[[], Image.Image]
    question: str
    answer: str
    answers: tuple[str, ...] = ()
    caption: str = ""
    cluster: str = ""
    judge: Callable[[str], float | None] | None = None
    """Of a benchmark with a parser of its own: how right a reply is."""


Score = Callable[[str, Example], float]
"""(reply, example) -> score in [0, 1]."""


def vqa_match(reply: str, example: Example) -> float:
    """Exact match after VQA's normalisation; VQA's soft score where there are several answers."""
    if example.answers:
        return soft_score(reply, example.answers)
    return float(normalise(reply) == normalise(example.answer))


def own_match(reply: str, example: Example) -> float:
    """By the benchmark's own parser where it has one, else ``vqa_match``.

    VQA's match takes the letter A for an article, and an empty reply for it.
    """
    own = None if example.judge is None else example.judge(reply)
    return vqa_match(reply, example) if own is None else own


def from_records(records: Iterable[Record]) -> list[Example]:
    """Examples of the records that ask about one picture; pictures are asked as they were read."""
    return [
        Example(
            id=record["id"],
            picture=partial(_same, pictures_of(record)[0]),
            question=record["question"],
            answer=record["answer"],
            answers=tuple(record.get("answers") or ()),
            caption=record["caption"] or "",
        )
        for record in records
        if record["question"] and record["answer"] and num_pictures(record) == 1
    ]


def from_items(items: Iterable[Item], benchmark: Benchmark | None = None) -> list[Example]:
    """Examples of a benchmark's items, with its prompts: those with one picture and an answer.

    Args:
        items: of the benchmark.
        benchmark: judges replies, where it can judge a single one.
    """
    examples = []
    for item in items:
        raw = item.reference.get("answers") or ()
        answers = tuple(a if isinstance(a, str) else str(a["answer"]) for a in raw)
        answer = item.reference.get("answer") or (most_common_answer(answers) if answers else "")
        if len(item.pictures) == 1 and isinstance(answer, str) and answer:
            judge = None if benchmark is None else partial(benchmark.right, item)
            picture = item.pictures[0]
            examples.append(
                Example(item.id, picture, item.prompt, answer, answers, "", item.cluster, judge)
            )
    return examples


def _same(image: Image.Image) -> Image.Image:
    return image
