"""GenEval's scoring of drawn pictures: detected once, kept, judged, laid out for the reference."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from unigame.data import CorruptImage
from unigame.data.images import decode_image, read_file
from unigame.evaluation.base import Item, Prediction
from unigame.evaluation.scorers.detectors import ColourClassifier, Detection, Detector
from unigame.evaluation.store import JsonlStore
from unigame.evaluation.tasks.geneval.rules import TAGS, Verdict, colour_queries, countable, judge
from unigame.evaluation.tasks.unifiedbench.rules import digest
from unigame.reports.metrics import Metric, Unit

_AT_ONCE = 32  # pictures in memory together


class Drawn(NamedTuple):
    """One drawn picture: its id (item/number), its item, its file and the digest of that file."""

    id: str
    item: Item
    number: int
    file: Path
    digest: str


def _is_source(scorer: object) -> bool:
    return scorer is None or isinstance(scorer, str | Path)


def drawn_pictures(
    items: Sequence[Item], predictions: Mapping[str, Prediction]
) -> tuple[list[Drawn], dict[str, str]]:
    """The pictures that there are, and why others are not, by id of the item or the picture."""
    drawn: list[Drawn] = []
    missing: dict[str, str] = {}
    for item in items:
        prediction = predictions.get(item.id)
        if prediction is None or prediction.error or not prediction.pictures:
            missing[item.id] = (prediction.error if prediction else "") or "no picture was drawn"
            continue
        for number, file in enumerate(prediction.pictures[: item.samples]):
            try:
                found = digest(read_file(file))
                drawn.append(Drawn(f"{item.id}/{number}", item, number, file, found))
            except CorruptImage as error:
                missing[f"{item.id}/{number}"] = f"drawn picture: {error.reason}"
    return drawn, missing


def without_pictures(
    items: Sequence[Item], readable: Sequence[Drawn], missing: Mapping[str, str]
) -> dict[str, str]:
    """Items of which no picture can be judged, and why not (of its first picture)."""
    judged = {each.item.id for each in readable}
    return {
        item.id: missing.get(item.id) or missing[f"{item.id}/0"]
        for item in items
        if item.id not in judged
    }


def detect(
    drawn: Sequence[Drawn],
    detector: Detector,
    colours: ColourClassifier,
    store: JsonlStore,
    missing: dict[str, str],
) -> list[Drawn]:
    """Find objects, and the colours that are asked for, in pictures that the store lacks.

    Args:
        drawn: pictures.
        detector: finds objects.
        colours: names colours of those objects that the rules ask about.
        store: one row per picture; a row of the same file, prompt and scorers is not made again.
        missing: pictures that cannot be decoded are added, with the reason.

    Returns:
        The pictures that the store now knows, in order.
    """
    scorers = [detector.name, colours.name]
    new = [each for each in drawn if not _known(each, scorers, store)]
    for batch, images in _decoded(new, missing):
        found = detector.detect(images)
        rows = []
        for each, image, detections in zip(batch, images, found, strict=True):
            metadata = each.item.reference
            objects = countable(detections, metadata["tag"])
            named = {
                class_name: colours.classify(image, queried, class_name)
                for class_name, queried in colour_queries(metadata, objects).items()
            }
            rows.append(
                {
                    "id": each.id,
                    "of": _of(each, scorers),
                    "detections": [
                        [one.class_name, one.score, *map(float, one.box)] for one in detections
                    ],
                    "colours": named,
                }
            )
        store.append(*rows)
    return [each for each in drawn if _known(each, scorers, store)]


def _known(each: Drawn, scorers: Sequence[str], store: JsonlStore) -> bool:
    return each.id in store and store[each.id]["of"] == _of(each, scorers)


def _of(each: Drawn, scorers: Sequence[str]) -> list[str]:
    """What a row depends on: scorers, picture, and what the prompt asks about."""
    asked = json.dumps(dict(each.item.reference), sort_keys=True)
    return [*scorers, each.digest, digest(asked.encode())]


def _decoded(
    drawn: Sequence[Drawn], missing: dict[str, str]
) -> Iterator[tuple[list[Drawn], list[Image.Image]]]:
    """Batches of pictures; damaged ones are noted and left out."""
    for start in range(0, len(drawn), _AT_ONCE):
        good, images = [], []
        for each in drawn[start : start + _AT_ONCE]:
            try:
                images.append(decode_image(read_file(each.file)))
                good.append(each)
            except CorruptImage as error:
                missing[each.id] = f"drawn picture: {error.reason}"
        if good:
            yield good, images


def verdict(each: Drawn, row: Mapping[str, Any]) -> Verdict:
    """The rules, applied to a stored row."""
    found = [Detection(name, score, tuple(box)) for name, score, *box in row["detections"]]
    objects = countable(found, each.item.reference["tag"])
    return judge(
        each.item.reference,
        objects,
        lambda class_name, asked: row["colours"][class_name][: len(asked)],
    )


Judged = Sequence[tuple[Drawn, Verdict]]


def write_verdicts(judged: Judged, path: Path) -> None:
    """One line a picture: id, tag, prompt, correct, and what is wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for each, said in judged:
            row = {
                "id": each.id,
                "tag": each.item.reference["tag"],
                "prompt": each.item.prompt,
                **said._asdict(),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def export(drawn: Iterable[Drawn], folder: Path) -> None:
    """Lay pictures out as the reference's ``evaluate_images.py`` reads them.

    ``{index:05d}/metadata.jsonl`` and ``{index:05d}/samples/{number:04d}.png``; PNG files are
    linked where the file system can, others are converted. What lay there before is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for each in drawn:
        target = folder / each.item.id / "samples" / f"{each.number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        metadata = json.dumps(dict(each.item.reference), ensure_ascii=False)
        (target.parent.parent / "metadata.jsonl").write_text(metadata + "\n", encoding="utf-8")
        if each.file.suffix.lower() != ".png":
            decode_image(read_file(each.file)).save(target)
            continue
        try:
            os.link(each.file, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(each.file, target)


def metrics(judged: Judged) -> list[Metric]:
    """The mean over tags first, then each tag, then the share of all pictures; from 0 to 1."""
    units = tuple(
        Unit(each.id, (float(said.correct),), cluster=each.item.id, group=_tag(each))
        for each, said in judged
    )
    tags = [tag for tag in TAGS if any(unit.group == tag for unit in units)]
    whole = len(tags) == len(TAGS)
    overall = Metric(
        "overall" if whole else f"mean_of_{len(tags)}_tags",
        "GenEval-like overall" if whole else f"GenEval-like, {len(tags)} of {len(TAGS)} tags",
        units,
        per_group=True,
        scale=1.0,
    )
    by_tag = [
        Metric(tag, tag.replace("_", " "), tuple(u for u in units if u.group == tag), scale=1.0)
        for tag in tags
    ]
    every = Metric("images", "share of all pictures (not the score)", units, scale=1.0)
    return [overall, *by_tag, every]


def _tag(each: Drawn) -> str:
    return str(each.item.reference["tag"])


def warnings(drawn: Sequence[Drawn], asked: int, detector: str) -> list[str]:
    """What a reader of the figures must know."""
    lines = [
        f"GenEval-like: the detector is {detector}, not the reference's mmdet checkpoint; compare "
        "only scores of the same detector"
    ]
    missing_tags = [tag for tag in TAGS if tag not in {_tag(each) for each in drawn}]
    if missing_tags:
        lines.append(f"no pictures for {', '.join(missing_tags)}: the mean is over the other tags")
    if len(drawn) < asked:
        lines.append(f"{asked - len(drawn)} of {asked} pictures are missing or damaged; left out")
    return lines
