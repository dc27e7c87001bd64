"""Where the pictures of a run lie beside each other: a map of embeddings in two dimensions.

    output_dir/dynamics/coverage.json    for each kind of picture: points, and how far from clean

Clean pictures are some of the training data, and candidates are what a method draws of these same
ones at the end. Beside them stand what it keeps (the buffer) and held-out data. An embedding is the
mean over tokens of the model's frozen vision features, so it moves with no player; the map is the
two main directions of all embeddings together (PCA).

It is made once, at the end, of at most as many pictures a kind as the run saw, and at most
``coverage_points``. That costs an encoding of each and one challenge without gradient: 3 seconds of
the bundled model's 100 on one core. A run that was resumed ends in the same map.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from unigame.backbones.base import Backbone
from unigame.errors import UserError
from unigame.methods.base import Method
from unigame.methods.rows import Batch
from unigame.seeds import derive_seed
from unigame.system.say import warn
from unigame.training.config import UniGameConfig
from unigame.training.identity import own_randomness
from unigame.training.weight_path import DYNAMICS

COVERAGE_FILE, FORMAT = "coverage.json", "unigame-coverage/1"
CLEAN, HELD_OUT = "clean", "held-out"
SAME = 1e-4
"""Embeddings closer than this share of their spread are of one picture: float32 keeps 1e-7."""


@dataclass(frozen=True)
class Sources:
    """What a map is made of.

    Attributes:
        backbone: embeds the pictures.
        methods: draw and keep some.
        train: records.
        held_out: records, or None.
        collate: records -> a batch.
        autocast: mixed precision of the run.
    """

    backbone: Backbone
    methods: Sequence[Method]
    train: Any
    held_out: Any
    collate: Callable[[Sequence[Any]], Batch]
    autocast: Callable[[], AbstractContextManager[Any]]


def write_coverage(sources: Sources, args: UniGameConfig, steps: int) -> str:
    """Make the map. First process only; a fault here costs the run nothing but its map.

    Args:
        sources: models, methods and data.
        args: settings of the run.
        steps: optimizer steps done.

    Returns:
        Why there is none; empty where it was written.
    """
    if not args.coverage_points:
        return "coverage_points is 0"
    if not any(method.draws_pictures for method in sources.methods):
        return "no method of this run draws pictures"
    if isinstance(sources.train, IterableDataset) or not hasattr(sources.train, "__len__"):
        return "the data is a stream, which cannot be looked at twice"
    seen = steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    try:
        with own_randomness(), sources.autocast(), sources.backbone.without_dropout():
            found = _embed(sources, args, min(args.coverage_points, seen))
        if not found:
            return "no picture of the data could be read"
        file = Path(args.output_dir) / DYNAMICS / COVERAGE_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(layout(found)), encoding="utf-8")
        return ""
    except Exception as error:  # memory, disk, a record, a method: the result is not saved yet
        why = " ".join(str(error).split()) or type(error).__name__
        warn(f"the report will have no map of pictures: {why}")
        return f"it could not be made ({why})"


def layout(features: dict[str, Tensor]) -> dict[str, Any]:
    """The map of embeddings (n, D) of each kind, as it is written.

    ``nearest`` of a kind is the median distance to the nearest clean picture, all directions
    counted, in units of what it is among clean ones themselves; None where these are all alike.
    """
    all_ED = torch.cat(list(features.values())).double()
    centred_ED = all_ED - all_ED.mean(0)
    left_EM, size_M, _ = torch.linalg.svd(centred_ED, full_matrices=False)
    at_E2 = torch.zeros(len(all_ED), 2, dtype=torch.float64)
    axes = min(2, len(size_M))
    at_E2[:, :axes] = left_EM[:, :axes] * size_M[:axes]
    at_E2 *= torch.where(at_E2.gather(0, at_E2.abs().argmax(0)[None]) < 0, -1, 1)  # a fixed sign
    share_M = size_M.square() / size_M.square().sum().clamp(min=1e-300)
    among = _nearest(features[CLEAN], features[CLEAN])
    kinds, done = {}, 0
    for kind, part_ED in features.items():
        points = at_E2[done : done + len(part_ED)].tolist()
        done += len(part_ED)
        far = among if kind == CLEAN else _nearest(part_ED, features[CLEAN])
        kinds[kind] = {
            "at": [[float(f"{value:.5g}") for value in point] for point in points],
            "nearest": far / among if among > 0 else None,
        }
    return {"format": FORMAT, "share": share_M[:2].tolist(), "kinds": kinds}


def _nearest(some_ED: Tensor, clean_ED: Tensor) -> float:
    """Median over some embeddings of the distance to the nearest clean one; 0: there is none.

    Among clean ones themselves only to another picture: several questions may show the same one,
    whose embeddings then differ by rounding alone.
    """
    distance = torch.cdist(some_ED.double(), clean_ED.double())
    if some_ED is clean_ED:
        spread = (clean_ED - clean_ED.mean(0)).double().norm(dim=1).mean()
        distance.masked_fill_(distance <= SAME * spread, torch.inf)
    nearest = distance.amin(1)
    return float(nearest.median()) if bool(nearest.isfinite().all()) else 0.0


@torch.no_grad()
def _embed(sources: Sources, args: UniGameConfig, count: int) -> dict[str, Tensor]:
    """Embeddings (n, D) by kind, float32 on the CPU."""
    found: dict[str, list[Tensor]] = {}

    def add(kind: str, images: Tensor) -> None:
        for part in images.split(args.train_batch_size):
            features = sources.backbone.image_features(part.to(args.device))
            found.setdefault(kind, []).append(features.float().mean(1).cpu())

    for batch in _batches(sources, sources.train, args, count):
        add(CLEAN, batch.records.pictures)
        for method in sources.methods:
            for kind, images in method.draw_again(batch).items():
                add(kind, images)
    for method in sources.methods:
        for kind, images in method.kept_pictures(count).items():
            add(kind, images)
    for batch in _batches(sources, _first(sources.held_out), args, count):
        add(HELD_OUT, batch.records.pictures)
    return {kind: torch.cat(parts) for kind, parts in found.items()} if CLEAN in found else {}


def _batches(sources: Sources, records: Any, args: UniGameConfig, count: int) -> Iterator[Batch]:
    """Batches of records chosen by the run's seed alone."""
    if isinstance(records, IterableDataset) or not hasattr(records, "__len__"):
        return
    generator = torch.Generator().manual_seed(derive_seed(args.seed, COVERAGE_FILE))
    chosen = torch.randperm(len(records), generator=generator)[:count].tolist()
    for first in range(0, len(chosen), args.train_batch_size):
        rows = [records[number] for number in chosen[first : first + args.train_batch_size]]
        with suppress(UserError):  # no picture of these can be read; training has warned of them
            batch = sources.collate(rows)
            if batch.num_skipped + len(batch.left_out) < len(rows):  # else it is a stand-in
                yield batch.to(args.device)


def _first(records: Any) -> Any:
    """Of several held-out sets by name the first."""
    return next(iter(records.values()), None) if isinstance(records, dict) else records
