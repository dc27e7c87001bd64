"""GenEval: does a drawn picture show the objects, numbers, colours and places that were asked for?

553 prompts of six kinds, four pictures each (Ghosh et al., arXiv 2310.11513). A detector finds
objects, a classifier names their colours, and the rules in ``rules.py`` decide; the score
is the mean over the six kinds of the share of right pictures, on a scale of 0 to 1.

The rules are the reference's. The detector is not (see ``scorers/detectors.py``), so scores are
called GenEval-like. The pictures are also laid out as the reference's own scorer wants them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from unigame.data import SkipReport
from unigame.errors import UserError
from unigame.evaluation.base import Benchmark, DataSource, Item, Loaded, Prediction, Scored
from unigame.evaluation.drawn import (
    Drawn,
    decoded,
    digest,
    drawn_pictures,
    without_pictures,
)
from unigame.evaluation.items import by_group, loaded
from unigame.evaluation.scorers.colours import DEFAULT_CLIP, CLIPColours, ColourClassifier
from unigame.evaluation.scorers.detectors import DEFAULT_DETECTOR, Detector, SegmentationDetector
from unigame.evaluation.scorers.pretrained import Loadable
from unigame.evaluation.scorers.registry import is_scorer, open_scorer
from unigame.evaluation.source import BadRow, field, read_rows
from unigame.evaluation.store import JsonlStore
from unigame.evaluation.tasks.geneval.rules import (
    CLASSES,
    COLOURS,
    COUNTING_THRESHOLD,
    MAX_OBJECTS,
    RELATIONS,
    TAGS,
    THRESHOLD,
    Detection,
    Verdict,
    colour_queries,
    countable,
    judge,
)
from unigame.reports.metrics import Metric, Unit

T = TypeVar("T")

_FILE = "evaluation_metadata.jsonl"


class GenEval(Benchmark):
    """Draw, detect, judge by rules.

    Args:
        prompt: only ``verbatim``: prompts are not rewritten.
        parser: only ``official``: the reference's rules and thresholds.
        detector: folder or Hub id of an instance-segmentation checkpoint, the name of a registered
            detector, or an object that detects; None: Mask2Former Swin-S.
        colours: folder or Hub id of a CLIP checkpoint, the name of a registered classifier, or an
            object that names colours; None: CLIP ViT-L/14.
        samples: pictures per prompt.
        device: where both run; None: the accelerator if there is one.
    """

    name = "geneval"
    title = "GenEval"
    group = "generation"
    task = "draw"
    prompt_variants = ("verbatim",)
    parser_variants = ("official",)

    def __init__(
        self,
        *,
        prompt: str | None = None,
        parser: str | None = None,
        detector: Detector | str | Path | None = None,
        colours: ColourClassifier | str | Path | None = None,
        samples: int = 4,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(prompt=prompt, parser=parser)
        if is_scorer(detector):
            detector = open_scorer(str(detector), "detect")
        if is_scorer(colours):
            colours = open_scorer(str(colours), "classify")
        if samples < 1:
            raise UserError(f"samples is {samples}; give at least 1, the reference draws 4")
        self.samples = samples
        # Which classes and colours a prompt may ask for; other detectors may know others.
        self._classes = CLASSES if _is_source(detector) else None
        self._colour_names = COLOURS if _is_source(colours) else None
        self._detector, self._colours, self._device = detector, colours, device

    def variant(self) -> dict[str, Any]:
        """Prompt and rules, pictures per prompt."""
        return {**super().variant(), "samples": self.samples}

    def prepare(self) -> None:
        """Find detector and colour classifier and read their weights once, before the drawing."""
        for scorer in self._scorers():
            if isinstance(scorer, Loadable):
                scorer.check()

    def _scorers(self) -> tuple[Detector, ColourClassifier]:
        if self._detector is None or isinstance(self._detector, str | Path):
            checkpoint = self._detector or DEFAULT_DETECTOR
            self._detector = SegmentationDetector(checkpoint, device=self._device)
        if self._colours is None or isinstance(self._colours, str | Path):
            self._colours = CLIPColours(self._colours or DEFAULT_CLIP, device=self._device)
        return self._detector, self._colours

    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Read ``evaluation_metadata.jsonl`` (in the folder itself or in its ``prompts``).

        With ``limit``, that many prompts, equally many of each kind: the file is sorted by kind.
        """
        if source.root is None and source.hub_id is None:
            raise UserError(
                "GenEval has no official data set on the Hub; download prompts/"
                f"{_FILE} of github djghosh13/geneval and give its folder with --data-root"
            )
        root = source.root.expanduser() if source.root else None
        if root is not None and (root / "prompts" / _FILE).is_file():
            source = replace(source, root=root / "prompts")
        rows = read_rows(
            source,
            hub_id=None,
            config=None,
            split="train" if root is None else Path(_FILE).stem,
            required=("tag", "include", "prompt"),
        )
        items, skips = [], SkipReport()
        for index, row in enumerate(rows.rows):
            try:
                items.append(self._item(f"{index:05d}", row))
            except BadRow as error:
                skips.add(f"{index:05d}", error.reason)
        if not items:
            raise UserError(
                f"{rows.info.id}: no row is a GenEval prompt ({skips.summary()}); is it {_FILE}?"
            )
        items = spread(items, limit, lambda item: str(item.reference["tag"]))
        info = replace(rows.info, id=root.resolve().name) if root else rows.info
        return loaded(items, info, skips)

    def _item(self, id: str, row: dict[str, Any]) -> Item:
        metadata = read_metadata(row, self._classes, self._colour_names)
        return Item(id, metadata["prompt"], reference=metadata, samples=self.samples)

    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """Share of right pictures of each kind, and their mean.

        Detections are kept in ``detections.jsonl``: a second run detects only in pictures that are
        new or changed. ``verdicts.jsonl`` says what is wrong with each picture, and ``official/``
        holds the pictures as the reference's scorer reads them.
        """
        detector, colours = self._scorers()
        drawn, missing = drawn_pictures(items, predictions)
        store = JsonlStore(folder / "detections.jsonl")
        readable = _detect(drawn, detector, colours, store, missing)
        for scorer in (detector, colours):
            if isinstance(scorer, Loadable):
                scorer.unload()
        judged = [(each, _verdict(each, store[each.id])) for each in readable]
        _write_verdicts(judged, folder / "verdicts.jsonl")
        _export(readable, folder / "official")
        asked = sum(item.samples for item in items)
        return Scored(
            metrics=metrics(judged),
            unscored=without_pictures(items, readable, missing),
            scorer={
                "detector": detector.name,
                "colours": colours.name,
                "threshold": THRESHOLD,
                "counting_threshold": COUNTING_THRESHOLD,
                "max_objects": MAX_OBJECTS,
            },
            details={"pictures": len(judged), "pictures_missing": asked - len(judged)},
            warnings=_warnings(readable, asked, detector.name),
        )


def _is_source(scorer: object) -> bool:
    return scorer is None or isinstance(scorer, str | Path)


# ---- prompts -------------------------------------------------------------------------------------


def read_metadata(
    row: Mapping[str, Any], classes: Collection[str] | None, colours: Collection[str] | None
) -> dict[str, Any]:
    """A row as the rules take it: tag, prompt, include and, where there is one, exclude.

    Args:
        row: of the file.
        classes: what the detector can find; None: anything.
        colours: what the classifier can name; None: anything.

    Raises:
        BadRow: a field is missing or of another kind, or asks for what cannot be found.
    """
    tag, prompt = field(row, "tag", str), field(row, "prompt", str)
    if tag not in TAGS:
        raise BadRow(f"unknown tag {tag!r}")
    if not prompt.strip():
        raise BadRow("empty prompt")
    include = field(row, "include", list)
    if not include:
        raise BadRow("empty include")
    metadata = {
        "tag": tag,
        "prompt": prompt,
        "include": [_wanted(entry, place, classes, colours) for place, entry in enumerate(include)],
    }
    if row.get("exclude") is not None:
        metadata["exclude"] = [_object(entry, classes) for entry in field(row, "exclude", list)]
    return metadata


def _wanted(
    entry: Any, place: int, classes: Collection[str] | None, colours: Collection[str] | None
) -> dict[str, Any]:
    """One entry of ``include``; those before it may be its landmark."""
    wanted = _object(entry, classes)
    if entry.get("color") is not None:
        wanted["color"] = field(entry, "color", str)
        if colours is not None and wanted["color"] not in colours:
            raise BadRow("unknown color")
    if entry.get("position") is not None:
        position = field(entry, "position", list)
        if len(position) != 2 or position[0] not in RELATIONS:
            raise BadRow("position is no [relation, landmark]")
        if type(position[1]) is not int or not 0 <= position[1] < place:
            raise BadRow("position refers to no earlier object")
        wanted["position"] = list(position)
    return wanted


def _object(entry: Any, classes: Collection[str] | None) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise BadRow("an object is no mapping")
    class_name, count = field(entry, "class", str), field(entry, "count", int)
    if classes is not None and class_name not in classes:
        raise BadRow("unknown class")
    if count < 1:
        raise BadRow("count below 1")
    return {"class": class_name, "count": count}


def spread(items: Sequence[T], limit: int | None, kind: Callable[[T], str]) -> list[T]:
    """At most ``limit`` items, the first of every kind, then the second..., in their own order."""
    if limit is None:
        return list(items)
    seen: dict[str, int] = {}
    ranks = []
    for index, item in enumerate(items):
        seen[kind(item)] = rank = seen.get(kind(item), 0) + 1
        ranks.append((rank, index))
    return [items[index] for index in sorted(index for _, index in sorted(ranks)[:limit])]


# ---- pictures ------------------------------------------------------------------------------------


def _detect(
    drawn: Sequence[Drawn],
    detector: Detector,
    colours: ColourClassifier,
    store: JsonlStore,
    missing: dict[str, str],
) -> list[Drawn]:
    """Find objects, and the colours that are asked for, in pictures that the store lacks.

    The store has a row per picture, which is made again where the file, the prompt or the scorers
    are others. Pictures that cannot be decoded are added to ``missing``.

    Returns:
        The pictures that the store now knows, in order.
    """
    of = {each.id: _of(each, [detector.name, colours.name]) for each in drawn}

    def known(each: Drawn) -> bool:
        return each.id in store and store[each.id]["of"] == of[each.id]

    for batch in decoded([each for each in drawn if not known(each)], Drawn.open, missing):
        rows = []
        found = detector.detect([image for _, image in batch])
        for (each, image), detections in zip(batch, found, strict=True):
            metadata = each.item.reference
            objects = countable(detections, metadata["tag"])
            named = {
                class_name: colours.classify(image, queried, class_name)
                for class_name, queried in colour_queries(metadata, objects).items()
            }
            kept = [[one.class_name, one.score, *map(float, one.box)] for one in detections]
            rows.append({"id": each.id, "of": of[each.id], "detections": kept, "colours": named})
        store.append(*rows)
    return [each for each in drawn if known(each)]


def _of(each: Drawn, scorers: Sequence[str]) -> list[str]:
    """What a row depends on: scorers, picture, and what the prompt asks about."""
    asked = json.dumps(dict(each.item.reference), sort_keys=True)
    return [*scorers, each.digest, digest(asked.encode())]


def _verdict(each: Drawn, row: Mapping[str, Any]) -> Verdict:
    """The rules, applied to a stored row."""
    found = [Detection(name, score, tuple(box)) for name, score, *box in row["detections"]]
    return judge(
        each.item.reference,
        countable(found, each.item.reference["tag"]),
        lambda class_name, asked: row["colours"][class_name][: len(asked)],
    )


Judged = Sequence[tuple[Drawn, Verdict]]


def _write_verdicts(judged: Judged, path: Path) -> None:
    """One line a picture: id, tag, prompt, correct, and what is wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for each, said in judged:
            asked = {"id": each.id, "tag": _tag(each), "prompt": each.item.prompt}
            file.write(json.dumps({**asked, **said._asdict()}, ensure_ascii=False) + "\n")


def _export(drawn: Iterable[Drawn], folder: Path) -> None:
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
            each.open().save(target)
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
    groups = by_group(units)
    tags = [tag for tag in TAGS if tag in groups]
    whole = len(tags) == len(TAGS)
    overall = Metric(
        "overall" if whole else f"mean_of_{len(tags)}_tags",
        "GenEval-like overall" if whole else f"GenEval-like, {len(tags)} of {len(TAGS)} tags",
        units,
        per_group=True,
        scale=1.0,
    )
    by_tag = [Metric(tag, tag.replace("_", " "), groups[tag], scale=1.0) for tag in tags]
    every = Metric("images", "share of all pictures (not the score)", units, scale=1.0)
    return [overall, *by_tag, every]


def _tag(each: Drawn) -> str:
    return str(each.item.reference["tag"])


def _warnings(drawn: Sequence[Drawn], asked: int, detector: str) -> list[str]:
    lines = [
        f"GenEval-like: the detector is {detector}, not the reference's mmdet checkpoint; compare "
        "only scores of the same detector"
    ]
    here = {_tag(each) for each in drawn}
    if missing := [tag for tag in TAGS if tag not in here]:
        lines.append(f"no pictures for {', '.join(missing)}: the mean is over the other tags")
    if len(drawn) < asked:
        lines.append(f"{asked - len(drawn)} of {asked} pictures are missing or damaged; left out")
    return lines
