"""Some confirmed drawings of a run for its report, with the caption that each was drawn by.

    output_dir/drawings/<method>.json       format, and an entry for each drawing
    output_dir/drawings/<method>-0.png ...

The newest drawing of each of the captions that were confirmed last. Where an independent reader
looks at pictures, it says of each whether it is right: errors of the verification are to be seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from unigame.methods.drawings.verifying import rendered
from unigame.system.say import warn

if TYPE_CHECKING:
    from unigame.methods.drawings.method import DrawingMethod
    from unigame.methods.drawings.store import StoredDrawing

FOLDER, FORMAT = "drawings", "unigame-drawings/1"
SHOWN = 12


def newest(drawings: Sequence[StoredDrawing], most: int = SHOWN) -> list[StoredDrawing]:
    """The newest of each caption, of at most so many captions, the newest first."""
    found: dict[str, StoredDrawing] = {}
    for drawing in reversed(drawings):
        found.setdefault(drawing.caption, drawing)
    return list(found.values())[:most]


@torch.no_grad()
def write_drawings(method: DrawingMethod) -> None:
    """Write those of this process. A fault here costs the run nothing but its pictures."""
    folder = Path(method.run.args.output_dir) / FOLDER
    chosen = newest(method.store.drawings)
    if not chosen:
        return
    try:
        images = rendered(method.run.backbone, method.codes_of(chosen)).cpu()
        right = _read(method, images, [drawing.caption for drawing in chosen])
        folder.mkdir(parents=True, exist_ok=True)
        entries = [
            _write_one(folder, f"{method.name}-{number}.png", *one)
            for number, one in enumerate(zip(chosen, images, right, strict=True))
        ]
        content = {"format": FORMAT, "method": method.name, "drawings": entries}
        (folder / f"{method.name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    except (RuntimeError, OSError) as error:  # memory, disk: the result is not saved yet
        warn(f"the report will have no drawings: {' '.join(str(error).split())}")


def _read(method: DrawingMethod, images: Tensor, captions: Sequence[str]) -> Sequence[bool | None]:
    reader = method.verifier.reader
    if reader is None or reader.asks:
        return [None] * len(captions)
    return reader.judge(images, captions)


def _write_one(
    folder: Path, name: str, drawing: StoredDrawing, image_3SS: Tensor, right: bool | None
) -> dict[str, Any]:
    pixels = image_3SS.mul(255).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(folder / name)
    return {
        "caption": drawing.caption,
        "step": drawing.step,
        "questions": [list(pair) for pair in drawing.questions],
        "right": None if right is None else bool(right),
        "picture": name,
    }
