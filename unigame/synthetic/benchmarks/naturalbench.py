"""NaturalBench: two pictures x two questions with opposite answers, as ``BaiqiL/NaturalBench``.

All groups are yes/no questions: the bundled model knows no letters, so the A/B groups of the real
data (a quarter of it) would only measure that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..questions import groups
from .common import Rng, png, write_parquet

REPLIES = 4  # of a group


def write(folder: Path, size: int, rng: Rng) -> None:
    """``size / 4`` groups, the three kinds (binding, relation, comparison) in turn."""
    texts = (
        *("Question_0", "Image_0_Question_0", "Image_1_Question_0"),
        *("Question_1", "Image_0_Question_1", "Image_1_Question_1"),
        *("Question_Type", "Source"),
    )
    columns = {"Index": "int64", "Image_0": "image", "Image_1": "image"}
    columns |= dict.fromkeys(texts, "string")
    rows: list[dict[str, Any]] = []
    for index, group in enumerate(groups(max(1, size // REPLIES), int(rng.integers(2**31)))):
        pictures = [
            {"bytes": png(s), "path": f"{index}_{i}.png"} for i, s in enumerate(group.scenes)
        ]
        rows.append(
            {
                "Index": index,
                "Image_0": pictures[0],
                "Image_1": pictures[1],
                "Question_0": group.questions[0],
                "Image_0_Question_0": "Yes",
                "Image_1_Question_0": "No",
                "Question_1": group.questions[1],
                "Image_0_Question_1": "No",
                "Image_1_Question_1": "Yes",
                "Question_Type": "yes_no",
                "Source": f"synthetic world, {group.kind}",
            }
        )
    write_parquet(folder / "train-00000-of-00001.parquet", rows, columns)
