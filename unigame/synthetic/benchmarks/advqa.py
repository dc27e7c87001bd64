"""AdVQA: the questions that fool models here, in the two JSON files of VQA and a folder of images.

Swapped bindings (a red disc and a blue square are there; is there a red square?), relations and
comparisons, on pictures of three or four objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..questions import QA, ask, choose
from ..world import Scene, random_scene
from .common import Rng, coco_name, jpeg, write_json
from .vqav2 import answer_type, question_type, ten_answers

KINDS = ("binding", "relation", "comparison")
PER_IMAGE = 2
LICENSE = {"id": 1, "name": "made by unigame, as free as it", "url": ""}
INFO = {"description": "Synthetic stand-in for AdVQA, in its layout", "version": "1.0"}


def write(folder: Path, size: int, rng: Rng) -> None:
    """``size`` questions, two a picture."""
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    images = folder / "val2014"
    images.mkdir()
    while len(questions) < size:
        image_id = len(questions) // PER_IMAGE + 1
        scene = random_scene(rng, counts=(3, 4))
        found = [hard_question(scene, KINDS[(len(questions) + i) % 3], rng) for i in range(2)]
        if None in found:
            continue
        (images / f"{coco_name(image_id)}.jpg").write_bytes(jpeg(scene))
        for i, qa in enumerate(found[: size - len(questions)]):
            assert qa is not None
            ids = {"question_id": 1000 * image_id + i, "image_id": image_id}
            questions.append({**ids, "question": qa[0]})
            annotations.append(
                {
                    **ids,
                    "question_type": question_type(qa[0]),
                    "answer_type": answer_type(qa[1]),
                    "multiple_choice_answer": qa[1],
                    "answers": ten_answers(qa[1], rng),
                }
            )
    head = {"info": INFO, "license": LICENSE, "data_type": "mscoco", "data_subtype": "val2017"}
    write_json(
        folder / "v1_OpenEnded_mscoco_val2017_advqa_questions.json",
        {**head, "task_type": "Open-Ended", "questions": questions},
    )
    write_json(
        folder / "v1_mscoco_val2017_advqa_annotations.json", {**head, "annotations": annotations}
    )


def hard_question(scene: Scene, kind: str, rng: Rng) -> QA | None:
    """One question of a hard kind, or None where the scene does not allow it."""
    if kind != "binding":
        return ask(scene, kind, rng)
    if rng.random() < 0.5:
        thing = choose(rng, scene.things)
        return f"is there a {thing.colour} {thing.shape}?", "yes"
    swapped = swapped_bindings(scene)
    if not swapped:
        return None
    colour, shape = choose(rng, swapped)
    return f"is there a {colour} {shape}?", "no"


def swapped_bindings(scene: Scene) -> list[tuple[str, str]]:
    """Pairs of a colour and a shape that are both there, but not together; in a fixed order."""
    there = {(t.colour, t.shape) for t in scene.things}
    colours, shapes = {t.colour for t in scene.things}, {t.shape for t in scene.things}
    return [(c, s) for c in sorted(colours) for s in sorted(shapes) if (c, s) not in there]
