"""What the writers share: pictures as bytes, parquet with the features of ``datasets``, choices."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..dataset import scene_of, to_pil
from ..questions import Rng, T, ask
from ..world import CELLS, COLOURS, SHAPES, Scene

DIGITS = ("0", "1", "2", "3", "4")
YES_NO = ("yes", "no")


def shuffled(rng: Rng, options: Sequence[T]) -> list[T]:
    """All of them in another order."""
    return [options[i] for i in rng.permutation(len(options))]


# ---- pictures ----------------------------------------------------------------------------------
def png(scene: Scene) -> bytes:
    """The picture of a scene as PNG: what the model sees is what was drawn."""
    stream = io.BytesIO()
    to_pil(scene).save(stream, "PNG")
    return stream.getvalue()


def jpeg(scene: Scene) -> bytes:
    """As JPEG, fine enough (no chroma subsampling) that a 3 px colour edge survives."""
    stream = io.BytesIO()
    to_pil(scene).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def coco_name(image_id: int) -> str:
    """The file name of a picture of COCO's validation set, as VQA and POPE refer to it."""
    return f"COCO_val2014_{image_id:012d}"


# ---- questions ---------------------------------------------------------------------------------
def asked(
    rng: Rng, count: int, kinds: Sequence[str], *, per_scene: int, conditions: Sequence[str]
) -> Iterator[tuple[int, Scene, str, str, str, str]]:
    """``count`` questions: (number of the scene, scene, condition, kind, question, answer).

    Scenes go round the conditions and questions round the kinds, so that all are equally frequent;
    no scene is asked the same question twice.
    """
    done = number = 0
    turn = 0
    while done < count:
        condition = conditions[number % len(conditions)]
        scene, said = scene_of(condition, rng), set()
        for _ in range(per_scene):
            kind = kinds[turn % len(kinds)]
            turn += 1
            found = ask(scene, kind, rng)
            if found is None or found[0] in said or done == count:
                continue
            said.add(found[0])
            done += 1
            yield number, scene, condition, kind, *found
        number += 1


def alternatives(answer: str) -> list[str]:
    """The other answers that such a question may have, in a fixed order."""
    for family in (tuple(COLOURS), SHAPES, DIGITS, YES_NO, CELLS):
        if answer in family:
            return [other for other in family if other != answer]
    raise ValueError(f"{answer!r} is no answer to a question of the world")


# ---- files -------------------------------------------------------------------------------------
def write_parquet(path: Path, rows: list[dict[str, Any]], columns: Mapping[str, Any]) -> None:
    """Rows with the features in the file's metadata, as ``Dataset.to_parquet`` writes them.

    Args:
        path: file to write.
        rows: their values.
        columns: type of each: a type of arrow, ``"image"``, or a list with the columns of its rows.
    """
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    def feature(kind: Any) -> Any:
        if isinstance(kind, list):
            return [{name: feature(inner) for name, inner in kind[0].items()}]
        return datasets.Image() if kind == "image" else datasets.Value(kind)

    features = datasets.Features({name: feature(kind) for name, kind in columns.items()})
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), path)


def write_json(path: Path, content: Any) -> None:
    """Readable JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
