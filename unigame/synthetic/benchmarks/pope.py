"""POPE: is a thing there? Three subsets on the same pictures, columns as ``lmms-lab/POPE``.

As in POPE, the subsets share their positives and differ in how negatives are chosen: any absent
thing; absent things that are frequent over all pictures; or (instead of things that often occur
together) a colour and a shape that are both in the picture, but on different objects. Questions
lack POPE's "in the image": the bundled model was never asked so, and would describe the picture.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..questions import choose
from ..world import COLOURS, SHAPES, Scene, random_scene
from .advqa import swapped_bindings
from .common import Rng, coco_name, png, write_parquet

SUBSETS = ("adversarial", "popular", "random")
TEXTS = ("id", "question_id", "question", "answer", "image_source")
POPULAR_POOL = 8  # of the 24 combinations
Pair = tuple[str, str]


def write(folder: Path, size: int, rng: Rng) -> None:
    """About ``size`` questions: each picture has one yes and one no in each subset."""
    columns = {**dict.fromkeys(TEXTS, "string"), "image": "image", "category": "string"}
    scenes: list[Scene] = []
    while len(scenes) < max(1, round(size / 6)):
        scene = random_scene(rng, counts=(3, 4))
        if swapped_bindings(scene):
            scenes.append(scene)
    positives = [choose(rng, [(t.colour, t.shape) for t in s.things]) for s in scenes]
    frequency = Counter((t.colour, t.shape) for s in scenes for t in s.things)
    popular = [pair for pair, _ in frequency.most_common(POPULAR_POOL)]
    rows: list[dict[str, Any]] = []
    for subset in SUBSETS:
        question_id = 0  # starts anew in each subset, as in POPE
        for number, (scene, positive) in enumerate(zip(scenes, positives, strict=True), start=1):
            for pair, answer in ((positive, "yes"), (negative(subset, scene, popular, rng), "no")):
                question_id += 1
                rows.append(
                    {
                        "id": str(len(rows)),
                        "question_id": str(question_id),
                        "question": f"Is there a {pair[0]} {pair[1]}?",
                        "answer": answer,
                        "image_source": coco_name(number),
                        "image": {"bytes": png(scene), "path": f"{coco_name(number)}.png"},
                        "category": subset,
                    }
                )
    write_parquet(folder / "test-00000-of-00001.parquet", rows, columns)


def negative(subset: str, scene: Scene, popular: list[Pair], rng: Rng) -> Pair:
    """A colour and a shape that no object of the scene has together."""
    there = {(t.colour, t.shape) for t in scene.things}
    absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in there]
    if subset == "adversarial":
        return choose(rng, swapped_bindings(scene))
    if subset == "popular":
        return choose(rng, [pair for pair in popular if pair not in there] or absent)
    return choose(rng, absent)
