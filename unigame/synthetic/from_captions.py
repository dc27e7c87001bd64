"""What a caption of the world says: questions that it answers, and whether a picture shows it.

For methods that draw by captions: a question maker and an independent reader, found by name.
A caption counts only if all of it is read: half of a scene gives wrong counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from . import world
from .questions import KINDS, QA, ask
from .reader import read
from .world import CELLS, Scene, Thing, parse_caption, random_scene

TASK_COUNTS = (2, 3, 4)
"""Objects of a scene of the new task (``where``): of one alone there is little to ask."""
_STYLE = re.compile(r"^[a-z]+: ")


def scene_of_caption(caption: str) -> Scene | None:
    """The objects of a caption on a plain background; None where some of it is not understood."""
    found = sorted(parse_caption(caption))
    objects = _STYLE.sub("", caption.strip()).split(",")
    cells = {cell for cell, _, _ in found}
    if not found or len(found) != len(objects) or len(cells) != len(objects):
        return None
    if any(len(words.split()) != 3 for words in objects):
        return None
    return Scene(tuple(Thing(cell, colour, shape) for cell, colour, shape in found))


def checks(scene: Scene) -> list[QA]:
    """Questions that a picture answers so only if it shows the scene: all of a model's old kinds.

    How many there are; of each object the colour and the shape at its place, and that it is there.
    """
    asked = [("how many shapes are there?", str(len(scene.things)))]
    for thing in scene.things:
        cell = CELLS[thing.cell]
        asked += [
            (f"what colour is the shape at {cell}?", thing.colour),
            (f"what shape is at {cell}?", thing.shape),
            (f"is there a {thing.colour} {thing.shape}?", "yes"),
        ]
    return asked


class WorldQuestions:
    """Question maker ``world``."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, captions: Sequence[str]) -> list[list[QA]]:
        """See ``checks``; none of a caption that is not of the world."""
        scenes = [scene_of_caption(caption) for caption in captions]
        return [checks(scene) if scene is not None else [] for scene in scenes]

    def old(self, captions: Sequence[str], seeds: Sequence[int]) -> list[list[str]]:
        """A question of each kind that the bundled model knows, without answers."""
        found = []
        for caption, seed in zip(captions, seeds, strict=True):
            scene, rng = scene_of_caption(caption), np.random.default_rng(seed)
            asked = [ask(scene, kind, rng) for kind in KINDS] if scene is not None else []
            found.append([pair[0] for pair in asked if pair is not None])
        return found


def read_drawings(images: Tensor, captions: Sequence[str]) -> list[bool | None]:
    """Reader ``world``: whether pictures (D, 3, S, S) show exactly the objects of their captions.

    None of a caption that is not of the world.
    """
    pictures = images.permute(0, 2, 3, 1).float().numpy()
    found: list[bool | None] = []
    for picture, caption in zip(pictures, captions, strict=True):
        scene = scene_of_caption(caption)
        wanted = None if scene is None else {(t.cell, t.colour, t.shape) for t in scene.things}
        found.append(None if wanted is None else read(picture) == wanted)
    return found


def where(scene: Scene) -> list[QA]:
    """A task that no training of the bundled model has: where is the red disc?

    Of each object that no other equals in colour and shape; the answer is its cell.
    """
    named = [(thing.colour, thing.shape) for thing in scene.things]
    return [
        (f"where is the {thing.colour} {thing.shape}?", CELLS[thing.cell])
        for thing in scene.things
        if named.count((thing.colour, thing.shape)) == 1
    ]


def new_scenes(number: int, seed: int, counts: tuple[int, ...] = TASK_COUNTS) -> list[Scene]:
    """Scenes to be described, from a stream of their own: none is drawn by any data set.

    Args:
        number: how many.
        seed: of them.
        counts: of objects in a scene.
    """
    rng = np.random.default_rng(seed)
    return [random_scene(rng, counts=counts) for _ in range(number)]


def write_captions(file: Path, scenes: Sequence[Scene], new_task: bool) -> None:
    """The captions of scenes as methods read them (``texts``), without pictures.

    Args:
        file: JSON lines, ``{"caption": ..., "questions": [...]}``; its folder is made.
        scenes: what is described.
        new_task: whether the questions of ``where`` stand beside each caption, with their answers.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as opened:
        for scene in scenes:
            pairs = where(scene) if new_task else []
            questions = [{"question": question, "answer": answer} for question, answer in pairs]
            row = {"caption": world.caption(scene), "questions": questions}
            opened.write(json.dumps(row) + "\n")
