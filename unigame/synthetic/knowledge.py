"""Knowledge prompts: places, colours and shapes by what they are known for, not by their names.

``three-sided shape coloured like ripe lemons where the sun rises`` is an east yellow triangle.
The bundled model learns the words from one half of the wordings of these facts (the recipe's stage
``knowledge``) and is measured on the other half, so a good drawing shows that it can combine them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from .questions import vocabulary
from .world import CELLS

# domain: {phrase: what it stands for}
COLOUR_FACTS: dict[str, dict[str, str]] = {
    "culture": {
        "taxi": "yellow",
        "valentine": "red",
        "shamrock": "green",
        "denim": "blue",
        "bubblegum": "pink",
        "turquoise": "cyan",
    },
    "biology": {
        "lemon": "yellow",
        "tomato": "red",
        "grass": "green",
        "cornflower": "blue",
        "flamingo": "pink",
    },
    "physics": {
        "lightning": "yellow",
        "ember": "red",
        "aurora": "green",
        "sky": "blue",
        "glacier": "cyan",
    },
    "chemistry": {
        "sulfur": "yellow",
        "rust": "red",
        "malachite": "green",
        "cobalt": "blue",
        "manganese": "pink",
    },
}
PLACE_FACTS: dict[str, dict[str, str]] = {
    "time": {
        "where clocks show iii": "east",
        "where clocks show vi": "south",
        "where clocks show ix": "west",
        "where clocks show xii": "north",
    },
    "space": {
        "where the sun rises": "east",
        "where the sun sets": "west",
        "near polar bears": "north",
        "near penguins": "south",
        "in the bullseye": "centre",
        "near the mistral": "northwest",
        "near the gregale": "northeast",
        "near the libeccio": "southwest",
        "near the sirocco": "southeast",
    },
}
SHAPE_FACTS: dict[str, str] = {
    "coin": "disc",
    "four-sided shape": "square",
    "three-sided shape": "triangle",
    "plus sign": "cross",
}
# No commas: in captions a comma begins the next object, and the model has learned that well.
TEMPLATES = (
    "{place} {colour} coloured {shape}",
    "{place} {shape} {colour} coloured",
    "{colour} coloured {shape} {place}",
)


@dataclass(frozen=True)
class Fact:
    """One prompt, and the one object that a good drawing of it shows."""

    prompt: str
    place_domain: str
    colour_domain: str
    cell: int
    colour: str
    shape: str

    @property
    def taught(self) -> bool:
        """Whether the recipe may train on this prompt; the others are for measuring."""
        return hashlib.sha256(self.prompt.encode()).digest()[0] < 128


def facts() -> Iterator[Fact]:
    """Every wording of every combination, in a fixed order."""
    places = [(d, *item) for d, known in PLACE_FACTS.items() for item in known.items()]
    colours = [(d, *item) for d, known in COLOUR_FACTS.items() for item in known.items()]
    for template, place, colour, shape in product(TEMPLATES, places, colours, SHAPE_FACTS.items()):
        yield Fact(
            prompt=template.format(shape=shape[0], colour=colour[1], place=place[1]),
            place_domain=place[0],
            colour_domain=colour[0],
            cell=CELLS.index(place[2]),
            colour=colour[2],
            shape=shape[1],
        )


def knowledge_words() -> list[str]:
    """The words (and the hyphen) of the prompts that plain captions and questions do not have."""
    known = {*vocabulary(), ",", ":"}
    pieces = (piece for fact in facts() for piece in re.findall(r"\w+|[^\w\s]", fact.prompt))
    return [piece for piece in dict.fromkeys(pieces) if piece not in known]
