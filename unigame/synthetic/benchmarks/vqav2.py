"""VQAv2: one-word questions with ten human-like answers each, columns as ``lmms-lab/VQAv2``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..from_captions import TASK_COUNTS, where
from ..questions import KINDS, choose
from ..world import Scene, random_scene
from .common import (
    DIGITS,
    YES_NO,
    Rng,
    alternatives,
    asked,
    coco_name,
    png,
    shuffled,
    write_parquet,
)

ANSWERS, PER_SCENE = 10, 3
MOST_DISSENTERS = 3  # of ten, so that the majority, and full marks for it, stay safe
NUMBER_WORDS = ("none", "one", "two", "three", "four")
QUESTION_TYPES = (  # longest first: VQAv2 names a question's type by how it begins
    *("what colour is the", "what shape is the", "what shape is at", "how many"),
    *("is there a", "are there more", "is the", "where is the"),
)
COLUMNS = {
    "question_type": "string",
    "multiple_choice_answer": "string",
    "answers": [{"answer": "string", "answer_confidence": "string", "answer_id": "int64"}],
    "image_id": "int64",
    "answer_type": "string",
    "question_id": "int64",
    "question": "string",
    "image": "image",
}


def write(folder: Path, size: int, rng: Rng, conditions: tuple[str, ...] = ("clean",)) -> None:
    """``size`` questions of the six kinds, three a picture."""
    known = asked(rng, size, KINDS, per_scene=PER_SCENE, conditions=conditions)
    _write(folder, ((number, scene, q, a) for number, scene, _, _, q, a in known), rng)


def write_new_task(folder: Path, size: int, rng: Rng) -> None:
    """``size`` questions that no training of the bundled model has: see ``where``."""
    _write(folder, _where(size, rng), rng)


def _where(size: int, rng: Rng) -> Iterator[tuple[int, Scene, str, str]]:
    done = number = 0
    while done < size:
        scene = random_scene(rng, counts=TASK_COUNTS)
        for question, answer in where(scene)[: min(PER_SCENE, size - done)]:
            done += 1
            yield number, scene, question, answer
        number += 1


def _write(folder: Path, questions: Iterable[tuple[int, Scene, str, str]], rng: Rng) -> None:
    """Rows of (number of the scene, scene, question, answer), each answered as it comes."""
    rows: list[dict[str, Any]] = []
    of_image: Counter[int] = Counter()
    for number, scene, question, answer in questions:
        image_id = number + 1
        of_image[image_id] += 1
        rows.append(
            {
                "question_type": question_type(question),
                "multiple_choice_answer": answer,
                "answers": ten_answers(answer, rng),
                "image_id": image_id,
                "answer_type": answer_type(answer),
                "question_id": 1000 * image_id + of_image[image_id],
                "question": question,
                "image": {"bytes": png(scene), "path": f"{coco_name(image_id)}.png"},
            }
        )
    write_parquet(folder / "validation-00000-of-00001.parquet", rows, COLUMNS)


def ten_answers(answer: str, rng: Rng) -> list[dict[str, Any]]:
    """Ten annotators: some write a number as a word, at most three answer something else."""
    said = [answer] * ANSWERS
    if rng.random() < 0.2:
        dissenters = int(rng.integers(1, MOST_DISSENTERS + 1))
        said[:dissenters] = [choose(rng, alternatives(answer)) for _ in range(dissenters)]
    if answer in DIGITS and rng.random() < 0.5:
        said[-1] = NUMBER_WORDS[int(answer)]
    return [
        {
            "answer": word,
            "answer_confidence": "yes" if word == said[-1] else "maybe",
            "answer_id": i + 1,
        }
        for i, word in enumerate(shuffled(rng, said))
    ]


def answer_type(answer: str) -> str:
    """yes/no, number or other."""
    return "yes/no" if answer in YES_NO else "number" if answer in DIGITS else "other"


def question_type(question: str) -> str:
    """The words by which VQAv2 sorts questions: how the question begins."""
    return next((t for t in QUESTION_TYPES if question.startswith(t)), "none of the above")
