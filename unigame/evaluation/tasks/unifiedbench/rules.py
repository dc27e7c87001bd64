"""How like themselves redrawn pictures are: cosines of encoders' features, and their averages.

Shapes: N pairs, D features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unigame.data import CorruptImage
from unigame.data.images import decode_image, read_file
from unigame.data.pictures import content_key
from unigame.evaluation.base import Item, Prediction
from unigame.evaluation.scorers.encoders import Encoder
from unigame.evaluation.scorers.pretrained import Loadable
from unigame.evaluation.store import JsonlStore
from unigame.reports.metrics import Metric, Unit

FULL = 4
"""An average over fewer encoders than this is not called UnifiedBench."""

_AT_ONCE = 32  # pairs in memory together

Cosines = Mapping[str, float | None]  # by item id; None: the encoder gave no figure


class Averages(NamedTuple):
    """Mean cosine of each encoder, and their unweighted mean; both on the cosine's own scale."""

    averages: dict[str, float]
    overall: float


def aggregate(
    cosines: Mapping[str, Cosines],
    references: Collection[object],
    generated: Collection[object],
) -> Averages:
    """TorchUMM's averages of one run.

    Args:
        cosines: by encoder and picture id; None or NaN (the encoder failed) is dropped.
        references: ids of the reference pictures.
        generated: ids of those that were drawn; the others are left out, not counted as 0.

    Returns:
        Averages on a scale of 0 to 1. An encoder without any figure has no average.

    Raises:
        ValueError: no encoder has a figure.
    """
    drawn = {str(id) for id in references} & {str(id) for id in generated}
    averages = {}
    for encoder, by_id in cosines.items():
        values = [value for id, value in figures(by_id).items() if str(id) in drawn]
        if values:
            averages[encoder] = float(np.mean(values))
    if not averages:
        raise ValueError("no cosines to average")
    return Averages(averages, float(np.mean(list(averages.values()))))


def figures(by_id: Cosines) -> dict[str, float]:
    """The cosines that are numbers."""
    return {id: value for id, value in by_id.items() if value is not None and math.isfinite(value)}


class Pair(NamedTuple):
    """A reference item, the file of the picture drawn for it, and the digest of that file."""

    item: Item
    drawn: Path
    digest: str


def pairs(
    items: Sequence[Item], predictions: Mapping[str, Prediction]
) -> tuple[list[Pair], dict[str, str]]:
    """What can be compared, and by item id why the rest cannot."""
    found, unscored = [], {}
    for item in items:
        prediction = predictions.get(item.id)
        if prediction is None or prediction.error or not prediction.pictures:
            error = prediction.error if prediction else ""
            unscored[item.id] = error or "no picture was drawn"
            continue
        drawn = prediction.pictures[0]
        try:
            found.append(Pair(item, drawn, digest(read_file(drawn))))
        except CorruptImage as error:
            unscored[item.id] = f"drawn picture: {error.reason}"
    return found, unscored


def cosines(
    label: str,
    encoder: Encoder,
    compared: Sequence[Pair],
    store: JsonlStore,
    unscored: dict[str, str],
) -> dict[str, float | None]:
    """One encoder's cosine of every pair, by item id; the encoder's weights are let go at the end.

    Args:
        label: the encoder's short label.
        encoder: what encodes.
        compared: reference items and drawn files.
        store: where cosines are kept; a row of the same files and weights is not computed again.
        unscored: pairs with a damaged picture are added, with the reason.
    """
    known, missing = {}, []
    for pair in compared:
        row = store.get(f"{label}/{pair.item.id}")
        if row is not None and row["of"] == _of(encoder, pair):
            known[pair.item.id] = row["cosine"]
        else:
            missing.append(pair)
    for batch in _decoded(missing, unscored):
        both = [*(reference for _, reference, _ in batch), *(drawn for _, _, drawn in batch)]
        first_ND, second_ND = np.split(np.asarray(encoder.encode(both), dtype=np.float64), 2)
        values = [round(value, 9) for value in cosine(first_ND, second_ND).tolist()]
        for (pair, _, _), value in zip(batch, values, strict=True):
            known[pair.item.id] = value if math.isfinite(value) else None
        store.append(
            *(
                {
                    "id": f"{label}/{pair.item.id}",
                    "cosine": known[pair.item.id],
                    "of": _of(encoder, pair),
                }
                for pair, _, _ in batch
            )
        )
    if isinstance(encoder, Loadable):
        encoder.unload()
    return {pair.item.id: known[pair.item.id] for pair in compared if pair.item.id in known}


def cosine(first_ND: NDArray[np.float64], second_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of each row with its partner, (N,); NaN where a vector is zero or not finite."""
    lengths_N = np.linalg.norm(first_ND, axis=1) * np.linalg.norm(second_ND, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (first_ND * second_ND).sum(1) / lengths_N


def _of(encoder: Encoder, pair: Pair) -> list[str]:
    """What a cosine depends on: weights, reference and drawn picture."""
    reference = pair.item.reference.get("sha256") or content_key(pair.item.pictures[0])[:16]
    return [encoder.name, str(reference), pair.digest]


def _decoded(
    compared: Sequence[Pair], unscored: dict[str, str]
) -> Iterator[list[tuple[Pair, Image.Image, Image.Image]]]:
    """Batches of (pair, reference, drawn picture); damaged ones are noted and left out."""
    for start in range(0, len(compared), _AT_ONCE):
        batch = []
        for pair in compared[start : start + _AT_ONCE]:
            whose = "reference"
            try:
                reference = pair.item.pictures[0]()
                whose = "drawn picture"
                batch.append((pair, reference, decode_image(read_file(pair.drawn))))
            except CorruptImage as error:
                unscored[pair.item.id] = f"{whose}: {error.reason}"
        if batch:
            yield batch


def digest(content: bytes) -> str:
    """First letters of the SHA-256 of a file."""
    return hashlib.sha256(content).hexdigest()[:16]


def metrics(by_encoder: Mapping[str, Cosines]) -> list[Metric]:
    """The overall figure first, then each encoder's mean; all times 100."""
    units = {
        label: tuple(
            Unit(f"{label}/{id}", (value,), cluster=id, group=label)
            for id, value in figures(by_id).items()
        )
        for label, by_id in by_encoder.items()
    }
    used = [label for label, of_label in units.items() if of_label]
    full = len(used) >= FULL
    overall = Metric(
        "overall" if full else f"proxy_{len(used)}_encoders",
        f"{'UnifiedBench' if full else 'Proxy, not UnifiedBench'} ({', '.join(used) or 'nothing'})",
        tuple(unit for of_label in units.values() for unit in of_label),
        per_group=True,
    )
    return [
        overall,
        *(Metric(f"cosine_{label}", f"{label} cosine", units[label]) for label in used),
    ]


def warnings(by_encoder: Mapping[str, Cosines]) -> list[str]:
    """What a reader of the figures must know."""
    used = [label for label, by_id in by_encoder.items() if figures(by_id)]
    lines = []
    if len(used) < FULL:
        lines.append(
            f"an average over {len(used)} encoders ({', '.join(used) or 'none'}) is a proxy, not "
            "UnifiedBench, which has four; compare it only with runs of the same encoders"
        )
    for label, by_id in by_encoder.items():
        if lost := len(by_id) - len(figures(by_id)):
            lines.append(f"{label} gave no figure for {lost} pictures; they were dropped")
    return lines
