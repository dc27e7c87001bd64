"""MMMU: questions with options as the text of a Python list and ``<image 1>`` marks.

Counts are asked openly (most open questions of the original are about numbers), all else by
multiple choice. One question in eight shows two pictures and asks about one of them; a model that
reads only the first picture must guess half of those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..dataset import scene_of
from ..questions import KINDS, ask
from ..world import Scene, random_scene
from .common import YES_NO, Rng, alternatives, png, shuffled, write_parquet

IMAGES = 7
OPEN_KIND = "count"
EVERY_PAIR = 8  # rounds of the six kinds
SUBJECTS = (  # all 30, because scores are averaged by subject and domain
    *("Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory"),
    *("Basic_Medical_Science", "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science"),
    *("Design", "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics"),
    *("Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage"),
    *("Marketing", "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy"),
    *("Physics", "Psychology", "Public_Health", "Sociology"),
)
DIFFICULTY = {
    **dict.fromkeys(("colour", "shape"), "Easy"),
    **dict.fromkeys(("count", "existence"), "Medium"),
    **dict.fromkeys(("relation", "comparison"), "Hard"),
}
TEXTS = (
    *("id", "question", "options", "explanation", "img_type", "answer", "topic_difficulty"),
    *("question_type", "subfield"),
)


def write(folder: Path, size: int, rng: Rng) -> None:
    """``size`` questions, dealt out to the 30 subjects."""
    columns = dict.fromkeys(TEXTS, "string")
    columns |= {f"image_{k + 1}": "image" for k in range(IMAGES)}
    rows = [row(i, KINDS[i % len(KINDS)], rng) for i in range(size)]
    write_parquet(folder / "validation-00000-of-00001.parquet", rows, columns)


def row(number: int, kind: str, rng: Rng) -> dict[str, Any]:
    """One question of a kind, in MMMU's columns."""
    scene, text, answer = asked_scene(kind, rng)
    scenes, question = [scene], f"<image 1> {text}"
    if number // len(KINDS) % EVERY_PAIR == EVERY_PAIR - 1:
        asked = int(rng.integers(2))
        scenes = [scene, random_scene(rng)] if asked == 0 else [random_scene(rng), scene]
        question = f"<image 1> <image 2> in <image {asked + 1}>: {text}"
    options = [] if kind == OPEN_KIND else options_of(answer, rng)
    reply = "ABCD"[options.index(answer)] if options else answer
    subject = SUBJECTS[number % len(SUBJECTS)]
    return {
        "id": f"validation_{subject}_{number // len(SUBJECTS) + 1}",
        "question": question,
        "options": str(options),
        "explanation": "",
        "img_type": "['Diagrams']",
        "answer": reply,
        "topic_difficulty": DIFFICULTY[kind],
        "question_type": "multiple-choice" if options else "open",
        "subfield": kind,
        **{
            f"image_{k + 1}": {"bytes": png(scenes[k]), "path": None} if k < len(scenes) else None
            for k in range(IMAGES)
        },
    }


def asked_scene(kind: str, rng: Rng) -> tuple[Scene, str, str]:
    """A clean scene that allows a question of the kind, the question and its answer."""
    while True:
        scene = scene_of("clean", rng)
        found = ask(scene, kind, rng)
        if found is not None:
            return scene, *found


def options_of(answer: str, rng: Rng) -> list[str]:
    """The answer among others of its family: two options for yes/no, else four, shuffled."""
    if answer in YES_NO:
        return shuffled(rng, YES_NO)
    others = alternatives(answer)
    return shuffled(rng, [answer, *shuffled(rng, others)[:3]])
