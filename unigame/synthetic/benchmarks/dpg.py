"""DPG-Bench: ``dpg_bench.csv``, a row a question; the prompts are captions of the world.

The graph of ``west red disc, east blue square`` has, for every object, three questions of which
each depends on the one before: is there a disc, is it red, is it in the west? Relations between two
objects depend on the colour questions of both, and the number of objects on nothing.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..reader import Triple
from ..world import CELLS, GRID, Scene, Thing, caption, random_scene
from .common import Rng

SAMPLES = 4  # pictures that the reference asks for per prompt
COLUMNS = (
    *("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad"),
    *("category_detailed", "tuple", "question_natural_language"),
)

Row = tuple[str, str, tuple[int, ...], str]
"""Category, what the tuple holds, ids of the parents, the question."""


def write(folder: Path, size: int, rng: Rng) -> None:
    """``size / 4`` prompts of two to four objects; each is drawn four times."""
    with (folder / "dpg_bench.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number in range(max(1, size // SAMPLES)):
            scene = random_scene(rng, counts=(2, 3, 4))
            for id, row in enumerate(questions(scene), start=1):
                category, about, parents, question = row
                broad, detailed = category.split(" - ")
                dependency = ",".join(map(str, parents)) or "0"
                table.writerow(
                    [f"synthetic{number}", caption(scene), "", id, dependency, broad, detailed]
                    + [f"{category} ({about})", question]
                )


def questions(scene: Scene) -> list[Row]:
    """The graph of a scene; the id of a question is its place, from 1."""
    rows: list[Row] = []
    shapes: dict[str, int] = {}
    colours: dict[Thing, int] = {}
    for thing in scene.things:
        shape, colour, cell = thing.shape, thing.colour, CELLS[thing.cell]
        if shape not in shapes:
            rows.append(("entity - whole", shape, (), f"is there a {shape}?"))
            shapes[shape] = len(rows)
        asked = f"is there a {colour} {shape}?"
        rows.append(("attribute - color", f"{shape}, {colour}", (shapes[shape],), asked))
        colours[thing] = len(rows)
        asked = f"is the {colour} {shape} at {cell}?"
        rows.append(("relation - spatial", f"{shape}, {cell}", (colours[thing],), asked))
    for one, other in zip(scene.things, scene.things[1:], strict=False):
        word = "above" if one.row < other.row else "left of"  # they are in reading order
        names = (f"{one.colour} {one.shape}", f"{other.colour} {other.shape}")
        asked = f"is the {names[0]} {word} the {names[1]}?"
        about = f"{one.shape}, {other.shape}, {word}"
        rows.append(("relation - spatial", about, (colours[one], colours[other]), asked))
    count = len(scene.things)
    rows.append(("other - count", f"shapes, =={count}", (), f"are there {count} shapes?"))
    return rows


# ---- what is true of a picture -------------------------------------------------------------------
_THERE = re.compile(r"is there a (?:(\w+) )?(\w+)\?")
_PLACE = re.compile(r"is the (\w+) (\w+) at (\w+)\?")
_RELATION = re.compile(r"is the (\w+) (\w+) (above|left of) the (\w+) (\w+)\?")
_COUNT = re.compile(r"are there (\d+) shapes\?")


def holds(question: str, objects: Iterable[Triple]) -> bool | None:
    """The true answer to one of these questions, from the objects seen; None: no such question."""
    seen = set(objects)
    if found := _THERE.fullmatch(question):
        colour, shape = found.groups()
        return any(True for _ in _cells(seen, colour, shape))
    if found := _PLACE.fullmatch(question):
        colour, shape, cell = found.groups()
        return any(CELLS[each] == cell for each in _cells(seen, colour, shape))
    if found := _RELATION.fullmatch(question):
        colour, shape, word, other_colour, other_shape = found.groups()
        return any(
            one // GRID < other // GRID if word == "above" else one % GRID < other % GRID
            for one in _cells(seen, colour, shape)
            for other in _cells(seen, other_colour, other_shape)
        )
    if found := _COUNT.fullmatch(question):
        return len(seen) == int(found.group(1))
    return None


def _cells(seen: set[Triple], colour: str | None, shape: str) -> Iterator[int]:
    return (c for c, k, s in seen if s == shape and colour in (None, k))
