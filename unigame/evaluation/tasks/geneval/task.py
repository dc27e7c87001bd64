"""GenEval: does a drawn picture show the objects, numbers, colours and places that were asked for?

553 prompts of six kinds, four pictures each (Ghosh et al., arXiv 2310.11513). A detector finds
objects, a classifier names their colours, and the rules in ``rules.py`` decide; the score
is the mean over the six kinds of the share of right pictures, on a scale of 0 to 1.

The rules are the reference's. The detector is not (see ``scorers/detectors.py``), so scores are
called GenEval-like. The pictures are also laid out as the reference's own scorer wants them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unigame.data import SkipReport
from unigame.errors import UserError
from unigame.evaluation.base import Benchmark, DataSource, Item, Loaded, Prediction, Scored
from unigame.evaluation.scorers.colours import DEFAULT_CLIP, CLIPColours, ColourClassifier
from unigame.evaluation.scorers.detectors import DEFAULT_DETECTOR, Detector, SegmentationDetector
from unigame.evaluation.scorers.pretrained import Loadable
from unigame.evaluation.scorers.registry import is_scorer, open_scorer
from unigame.evaluation.source import BadRow, fingerprint, read_rows
from unigame.evaluation.store import JsonlStore
from unigame.evaluation.tasks.geneval.pictures import (
    detect,
    drawn_pictures,
    export,
    metrics,
    verdict,
    warnings,
    without_pictures,
    write_verdicts,
)
from unigame.evaluation.tasks.geneval.rows import read_metadata, spread
from unigame.evaluation.tasks.geneval.rules import (
    CLASSES,
    COLOURS,
    COUNTING_THRESHOLD,
    MAX_OBJECTS,
    THRESHOLD,
)

_FILE = "evaluation_metadata.jsonl"


class GenEval(Benchmark):
    """Draw, detect, judge by rules.

    Args:
        prompt: only ``verbatim``: prompts are not rewritten.
        parser: only ``official``: the reference's rules and thresholds.
        detector: folder or Hub id of an instance-segmentation checkpoint, or an object that
            detects; None: Mask2Former Swin-S of ``detectors.DEFAULT_DETECTOR``.
        colours: folder or Hub id of a CLIP checkpoint, or an object that names colours; None:
            CLIP ViT-L/14.
        samples: pictures per prompt.
        device: where both run; None: the accelerator if there is one.

    Raises:
        UserError: an unknown variant.
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
        """Find detector and colour classifier and read their weights once, before the drawing.

        Raises:
            UserError: one cannot be had or is of the wrong kind.
        """
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

    # ---- items ---------------------------------------------------------------------------------

    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Read ``evaluation_metadata.jsonl`` (in the folder itself or in its ``prompts``).

        With ``limit``, that many prompts, equally many of each kind: the file is sorted by kind.

        Raises:
            UserError: no such file, or one of another layout.
        """
        if source.root is None and source.hub_id is None:
            raise UserError(
                "GenEval has no official data set on the Hub; download prompts/"
                f"{_FILE} of github djghosh13/geneval and give its folder with --data-root"
            )
        root = source.root.expanduser() if source.root else None
        inner = replace(source, root=root / "prompts") if root else source
        in_prompts = root is not None and (root / "prompts" / _FILE).is_file()
        rows = read_rows(
            inner if in_prompts else source,
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
        skips.kept = len(items)
        info = replace(rows.info, id=root.resolve().name) if root else rows.info
        return Loaded(items, replace(info, fingerprint=fingerprint(items)), skips)

    def _item(self, id: str, row: dict[str, Any]) -> Item:
        metadata = read_metadata(row, self._classes, self._colour_names)
        return Item(id, metadata["prompt"], reference=metadata, samples=self.samples)

    # ---- scores --------------------------------------------------------------------------------

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
        readable = detect(drawn, detector, colours, store, missing)
        for scorer in (detector, colours):
            if isinstance(scorer, Loadable):
                scorer.unload()
        judged = [(each, verdict(each, store[each.id])) for each in readable]
        write_verdicts(judged, folder / "verdicts.jsonl")
        export(readable, folder / "official")
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
            warnings=warnings(readable, asked, detector.name),
        )


def _is_source(scorer: object) -> bool:
    return scorer is None or isinstance(scorer, str | Path)
