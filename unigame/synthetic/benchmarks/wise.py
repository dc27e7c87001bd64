"""WISE (legacy): three JSON lists of prompts that only knowledge can turn into a picture.

Ids and categories are those of the original: culture 1-400, time 401-567, space 568-700, biology
701-800, physics 801-900, chemistry 901-1000, of which each category takes its first few in the
original's proportions. A set stays well below the original's size, so that no loader takes it for
that. Its prompts are among those that the bundled model was never trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..knowledge import Fact, facts
from ..world import CELLS
from .common import Rng, shuffled, write_json

# file: {category: (first id, number of ids)}
FILES = {
    "cultural_common_sense": {"culture": (1, 400)},
    "spatio-temporal_reasoning": {"time": (401, 167), "space": (568, 133)},
    "natural_science": {"biology": (701, 100), "physics": (801, 100), "chemistry": (901, 100)},
}
MOST_PROMPTS = 250
TITLES = {"culture": "Cultural knowledge"}  # the other categories go by their own names


def write(folder: Path, size: int, rng: Rng) -> None:
    """``size`` prompts, at most 250, each of them once."""
    size = min(size, MOST_PROMPTS)
    unseen = [fact for fact in facts() if not fact.taught]
    used: set[str] = set()
    for file, categories in FILES.items():
        rows = []
        for category, (first, full) in categories.items():
            pool = (f for f in shuffled(rng, unseen) if belongs(f, category))
            count = min(full, max(1, round(size * full / 1000)))
            rows += [row(f, category, first + i) for i, f in enumerate(take(pool, count, used))]
        write_json(folder / f"{file}.json", rows)


def belongs(fact: Fact, category: str) -> bool:
    """Culture and the sciences are about the colour, time and space about the place."""
    if category in ("time", "space"):
        return fact.place_domain == category and fact.colour_domain != "culture"
    return fact.colour_domain == category


def take(pool: Iterator[Fact], count: int, used: set[str]) -> Iterator[Fact]:
    """The first ``count`` facts whose prompt is not used yet."""
    for fact in pool:
        if count == 0:
            return
        if fact.prompt not in used:
            used.add(fact.prompt)
            count -= 1
            yield fact
    assert count == 0, "more prompts asked for than there are wordings"


def row(fact: Fact, category: str, prompt_id: int) -> dict[str, str | int]:
    """One prompt in WISE's keys; the explanation, which only the judge sees, names the object."""
    return {
        "Prompt": fact.prompt,
        "Explanation": f"This is one {CELLS[fact.cell]} {fact.colour} {fact.shape} and no more.",
        "Category": TITLES.get(category, category.capitalize()),
        "Subcategory": f"{fact.colour_domain} of colours, {fact.place_domain} of places",
        "prompt_id": prompt_id,
    }
