"""One-word questions about scenes, with true answers; and groups of images x questions.

Every kind is balanced so that no answer can be guessed, and existence questions have *swapped
binding* negatives: red disc and blue square are there, and the question is about a red square.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from .world import (
    CELLS,
    COLOURS,
    COLUMNS,
    HELD_OUT,
    PLURALS,
    ROWS,
    SHAPES,
    Scene,
    Thing,
    random_scene,
)

KINDS = ("count", "colour", "shape", "existence", "relation", "comparison")  # what is measured

Rng = np.random.Generator
QA = tuple[str, str]
T = TypeVar("T")


def choose(rng: Rng, options: Sequence[T]) -> T:
    """One of them."""
    return options[int(rng.integers(len(options)))]


def _unique(scene: Scene, attribute: str) -> list[Thing]:
    seen = Counter(getattr(t, attribute) for t in scene.things)
    return [t for t in scene.things if seen[getattr(t, attribute)] == 1]


def count(scene: Scene, rng: Rng) -> QA:
    """How many shapes, discs, red ones: answers 0 to 4."""
    how = rng.random()
    if how < 0.4:
        return "how many shapes are there?", str(len(scene.things))
    if how < 0.7:
        shape = choose(rng, SHAPES if rng.random() < 0.3 else [t.shape for t in scene.things])
        number = sum(t.shape == shape for t in scene.things)
        return f"how many {PLURALS[shape]} are there?", str(number)
    colour = choose(rng, tuple(COLOURS) if rng.random() < 0.3 else [t.colour for t in scene.things])
    number = sum(t.colour == colour for t in scene.things)
    return f"how many {colour} shapes are there?", str(number)


def colour(scene: Scene, rng: Rng) -> QA:
    """The colour of the only disc, or of the shape in a cell."""
    alone = _unique(scene, "shape")
    if alone and rng.random() < 0.5:
        thing = choose(rng, alone)
        return f"what colour is the {thing.shape}?", thing.colour
    thing = choose(rng, scene.things)
    return f"what colour is the shape at {CELLS[thing.cell]}?", thing.colour


def shape(scene: Scene, rng: Rng) -> QA:
    """The shape of the only red one, or of what is in a cell."""
    alone = _unique(scene, "colour")
    if alone and rng.random() < 0.5:
        thing = choose(rng, alone)
        return f"what shape is the {thing.colour} one?", thing.shape
    thing = choose(rng, scene.things)
    return f"what shape is at {CELLS[thing.cell]}?", thing.shape


def existence(scene: Scene, rng: Rng) -> QA:
    """Half yes; of the negatives, half swap the binding of two objects that are there."""
    present = {(t.colour, t.shape) for t in scene.things}
    if rng.random() < 0.2:
        attribute = "colour" if rng.random() < 0.5 else "shape"
        here = sorted({getattr(t, attribute) for t in scene.things})
        values = tuple(COLOURS) if attribute == "colour" else SHAPES
        absent = [v for v in values if v not in here]
        yes = rng.random() < 0.5 or not absent
        value = choose(rng, here if yes else absent)
        noun = f"{value} shape" if attribute == "colour" else value
        return f"is there a {noun}?", "yes" if yes else "no"
    if rng.random() < 0.5:
        c, s = choose(rng, sorted(present))
        return f"is there a {c} {s}?", "yes"
    swapped = [
        (a.colour, b.shape)
        for a in scene.things
        for b in scene.things
        if (a.colour, b.shape) not in present
    ]
    if swapped and rng.random() < 0.6:
        c, s = choose(rng, swapped)
    else:
        c, s = choose(rng, [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in present])
    return f"is there a {c} {s}?", "no"


def relation(scene: Scene, rng: Rng) -> QA | None:
    """Is the red disc left of (right of, above, below) the blue square?"""
    pairs = [
        (a, b, axis)
        for a in scene.things
        for b in scene.things
        for axis in ("row", "column")
        if getattr(a, axis) != getattr(b, axis)
    ]
    if not pairs:
        return None
    a, b, axis = choose(rng, pairs)
    first = getattr(a, axis) < getattr(b, axis)
    words = ("above", "below") if axis == "row" else ("left of", "right of")
    asked = int(rng.integers(2))
    answer = "yes" if (asked == 0) == first else "no"
    return f"is the {a.colour} {a.shape} {words[asked]} the {b.colour} {b.shape}?", answer


def comparison(scene: Scene, rng: Rng) -> QA:
    """More discs than squares? More red shapes than blue ones? Yes and no equally often.

    Where it can be, both are there: otherwise "is the first one there?" would answer most of them.
    """
    attribute = "shape" if rng.random() < 0.5 else "colour"
    values = SHAPES if attribute == "shape" else tuple(COLOURS)
    counts = Counter(getattr(t, attribute) for t in scene.things)
    pairs = [(m, k) for m in values for k in values if m != k and counts[m] + counts[k]]
    wanted = rng.random() < 0.5
    fitting = [p for p in pairs if (counts[p[0]] > counts[p[1]]) == wanted] or pairs
    both = [(m, k) for m, k in fitting if counts[m] and counts[k]]
    more, less = choose(rng, both if both and rng.random() < 0.6 else fitting)
    answer = "yes" if counts[more] > counts[less] else "no"
    if attribute == "shape":
        return f"are there more {PLURALS[more]} than {PLURALS[less]}?", answer
    return f"are there more {more} shapes than {less} shapes?", answer


def position(scene: Scene, rng: Rng) -> QA:
    """Which row or column an object is in: a step towards relations, asked in training only."""
    thing = choose(rng, scene.things)
    if rng.random() < 0.5:
        return f"which row is the {thing.colour} {thing.shape} in?", ROWS[thing.row]
    return f"which column is the {thing.colour} {thing.shape} in?", COLUMNS[thing.column]


_KINDS = (count, colour, shape, existence, relation, comparison, position)
ASK: dict[str, Callable[[Scene, Rng], QA | None]] = {kind.__name__: kind for kind in _KINDS}


def ask(scene: Scene, kind: str, rng: Rng) -> QA | None:
    """A (question, answer) of one kind, or None where the scene does not allow it."""
    return ASK[kind](scene, rng)


# ---- NaturalBench-style groups -----------------------------------------------------------------
@dataclass(frozen=True)
class Group:
    """Two images x two questions: q0 is yes on the first image only, q1 on the second only."""

    scenes: tuple[Scene, Scene]
    questions: tuple[str, str]
    kind: str


def _binding_group(rng: Rng) -> Group:
    """The same two colours and shapes, bound the other way round in the second image."""
    while True:
        scene = random_scene(rng, counts=(2, 3))
        a, b = scene.things[:2]
        swapped = {(a.colour, b.shape), (b.colour, a.shape)}
        there = {(t.colour, t.shape) for t in scene.things}
        if a.colour != b.colour and a.shape != b.shape and not swapped & (HELD_OUT | there):
            break
    other = scene.with_things(
        [replace(a, shape=b.shape), replace(b, shape=a.shape), *scene.things[2:]]
    )
    questions = (f"is there a {a.colour} {a.shape}?", f"is there a {a.colour} {b.shape}?")
    return Group((scene, other), questions, "existence")


def _relation_group(rng: Rng) -> Group:
    """Two objects trade places."""
    while True:
        scene = random_scene(rng, counts=(2, 3))
        a, b = scene.things[:2]
        axis = "row" if rng.random() < 0.5 else "column"
        if getattr(a, axis) != getattr(b, axis):
            break
    other = scene.with_things([replace(a, cell=b.cell), replace(b, cell=a.cell), *scene.things[2:]])
    first, second = ("above", "below") if axis == "row" else ("left of", "right of")
    if getattr(a, axis) > getattr(b, axis):
        first, second = second, first
    names = (f"{a.colour} {a.shape}", f"{b.colour} {b.shape}")
    questions = tuple(f"is the {names[0]} {word} the {names[1]}?" for word in (first, second))
    return Group((scene, other), questions, "relation")  # type: ignore[arg-type]


def _comparison_group(rng: Rng) -> Group:
    """More of one shape in the first image, more of the other in the second."""
    while True:
        scene = random_scene(rng, counts=(3,))
        shapes = [t.shape for t in scene.things]
        (major, n), *rest = Counter(shapes).most_common()
        if n != 2:
            continue
        minor = rest[0][0]
        turned = [t for t in scene.things if t.shape == major]
        changed = replace(turned[0], shape=minor)
        there = {(t.colour, t.shape) for t in scene.things}
        if (changed.colour, minor) not in HELD_OUT | there:
            break
    other = scene.with_things([changed, *[t for t in scene.things if t is not turned[0]]])
    questions = (
        f"are there more {PLURALS[major]} than {PLURALS[minor]}?",
        f"are there more {PLURALS[minor]} than {PLURALS[major]}?",
    )
    return Group((scene, other), questions, "comparison")


def groups(number: int, seed: int) -> list[Group]:
    """``number`` groups, the three kinds in turn. Same seed, same groups."""
    rng = np.random.default_rng([seed, 977])
    makers = (_binding_group, _relation_group, _comparison_group)
    return [makers[i % len(makers)](rng) for i in range(number)]


def vocabulary() -> list[str]:
    """Every word of captions, questions and answers, in a fixed order."""
    words = [*CELLS, *COLOURS, *SHAPES, *PLURALS.values(), *ROWS, *COLUMNS, "yes", "no"]
    words += [str(n) for n in range(5)]
    words += "faint blurred barred noisy striped checkered dotted shaded".split()
    words += (
        "how many shapes are there what colour is the shape at one a left right of above below "
        "more than which row column in describe image"
    ).split()
    return list(dict.fromkeys(words))
