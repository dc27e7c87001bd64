"""GenEval: ``evaluation_metadata.jsonl`` with its six tags; the classes are the world's shapes.

Prompts are captions of the world (``west red disc, east blue square``), because its model knows no
free English. So they say more than is checked: every object has a cell and a colour, also where the
tag asks for the class alone. For ``position`` the cells make the relation true.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..questions import choose
from ..world import CELLS, COLOURS, GRID, SHAPES
from .common import Rng, shuffled

SAMPLES = 4  # pictures that GenEval asks for per prompt
COUNTS = {  # prompts per tag in the original: 553 in all
    **{"single_object": 80, "two_object": 99, "counting": 80},
    **{"colors": 94, "position": 100, "color_attr": 100},
}
# Colours that GenEval's classifier knows too; cyan is drawn but never asked about.
NAMED = tuple(c for c in COLOURS if c != "cyan")
RELATIONS = ("left of", "right of", "above", "below")
Thing = tuple[int, str, str]  # cell, colour, shape


def write(folder: Path, size: int, rng: Rng) -> None:
    """``size / 4`` prompts (each is drawn four times), in the original's proportions of tags."""
    total = max(len(COUNTS), size // SAMPLES)
    lines = []
    for tag, count in COUNTS.items():
        for _ in range(max(1, round(count * total / sum(COUNTS.values())))):
            lines.append(json.dumps({"tag": tag, **MAKERS[tag](rng)}))
    (folder / "evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def prompt(things: list[Thing]) -> str:
    """A caption of the world, in reading order."""
    return ", ".join(f"{CELLS[cell]} {colour} {shape}" for cell, colour, shape in sorted(things))


def single_object(rng: Rng) -> dict[str, Any]:
    """One object of a class."""
    thing = (int(rng.integers(len(CELLS))), choose(rng, tuple(COLOURS)), choose(rng, SHAPES))
    return {"include": [{"class": thing[2], "count": 1}], "prompt": prompt([thing])}


def two_objects(rng: Rng) -> list[Thing]:
    """Two objects that differ in cell, colour and class."""
    cells = rng.permutation(len(CELLS))[:2]
    colours, shapes = shuffled(rng, NAMED), shuffled(rng, SHAPES)
    return [(int(cells[i]), colours[i], shapes[i]) for i in range(2)]


def two_object(rng: Rng) -> dict[str, Any]:
    """An object each of two classes."""
    things = two_objects(rng)
    return {"include": [{"class": s, "count": 1} for _, _, s in things], "prompt": prompt(things)}


def counting(rng: Rng) -> dict[str, Any]:
    """Two to four objects of one class, and no more."""
    count, shape = int(rng.integers(2, 5)), choose(rng, SHAPES)
    cells, colours = rng.permutation(len(CELLS)), shuffled(rng, tuple(COLOURS))
    things = [(int(cells[i]), colours[i], shape) for i in range(count)]
    return {
        "include": [{"class": shape, "count": count}],
        "exclude": [{"class": shape, "count": count + 1}],
        "prompt": prompt(things),
    }


def colors(rng: Rng) -> dict[str, Any]:
    """One object and its colour."""
    thing = (int(rng.integers(len(CELLS))), choose(rng, NAMED), choose(rng, SHAPES))
    entry = {"class": thing[2], "count": 1, "color": thing[1]}
    return {"include": [entry], "prompt": prompt([thing])}


def position(rng: Rng) -> dict[str, Any]:
    """The second object (subject) stands in a relation to the first (landmark)."""
    relation = choose(rng, RELATIONS)
    while True:
        landmark, subject = two_objects(rng)
        if holds(relation, subject[0], landmark[0]):
            break
    include = [
        {"class": landmark[2], "count": 1},
        {"class": subject[2], "count": 1, "position": [relation, 0]},
    ]
    return {"include": include, "prompt": prompt([landmark, subject])}


def holds(relation: str, subject: int, landmark: int) -> bool:
    """Whether cells stand in the relation and on one line, where no rounding could undo it."""
    down, across = subject // GRID - landmark // GRID, subject % GRID - landmark % GRID
    return {
        "left of": across < 0 and down == 0,
        "right of": across > 0 and down == 0,
        "above": down < 0 and across == 0,
        "below": down > 0 and across == 0,
    }[relation]


def color_attr(rng: Rng) -> dict[str, Any]:
    """Two objects, each in its colour."""
    things = two_objects(rng)
    include = [{"class": shape, "count": 1, "color": colour} for _, colour, shape in things]
    return {"include": include, "prompt": prompt(things)}


_TAGS = (single_object, two_object, counting, colors, position, color_attr)
MAKERS = {maker.__name__: maker for maker in _TAGS}
