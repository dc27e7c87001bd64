"""MMBench (dev, English): a TSV with base64 pictures, and every question in all its rotations.

Question i has the rows i, i + 10^6, ...: as many as it has options, which move by one each time.
Only the first row holds the picture; the others hold the index of that row, as in the original.
"""

from __future__ import annotations

import base64
import csv
from pathlib import Path

from ..questions import KINDS, choose
from .common import Rng, png
from .mmmu import asked_scene, options_of

ROTATION = 1_000_000
LETTERS = "ABCD"
NOTHING = "nan"  # what the original has where a cell is empty
COLUMNS = (
    *("index", "question", "hint", *LETTERS, "answer", "category", "image", "source"),
    *("L2-category", "comment", "split"),
)
CATEGORIES = {
    "count": ("object_localization", "finegrained_perception (instance-level)"),
    "colour": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "shape": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "existence": ("image_scene", "coarse_perception"),
    "relation": ("spatial_relationship", "finegrained_perception (cross-instance)"),
    "comparison": ("attribute_comparison", "finegrained_perception (cross-instance)"),
}
HINTS = ("there are shapes in the image.", "what is above is in a row of the top.")


def write(folder: Path, size: int, rng: Rng) -> None:
    """Questions until they have about ``size`` rows; one in six has a hint (that helps nobody)."""
    rows: list[dict[str, str]] = []
    number = 0
    while len(rows) < size:
        kind = KINDS[number % len(KINDS)]
        scene, question, answer = asked_scene(kind, rng)
        options = options_of(answer, rng)
        category, parent = CATEGORIES[kind]
        first = {
            "question": question,
            "hint": choose(rng, HINTS) if rng.random() < 1 / 6 else NOTHING,
            "category": category,
            "source": "synthetic world",
            "L2-category": parent,
            "comment": NOTHING,
            "split": "dev",
        }
        for turn in range(len(options)):
            moved = options[turn:] + options[:turn]
            rows.append(
                {
                    **first,
                    "index": str(number + turn * ROTATION),
                    **{letter: NOTHING for letter in LETTERS},
                    **dict(zip(LETTERS, moved, strict=False)),
                    "answer": LETTERS[moved.index(answer)],
                    "image": str(number) if turn else base64.b64encode(png(scene)).decode(),
                }
            )
        number += 1
    rows.sort(key=lambda row: int(row["index"]))
    with (folder / "dev.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
