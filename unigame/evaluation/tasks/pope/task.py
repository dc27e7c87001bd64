"""POPE: is there a {object} in the picture? (Li et al., 2305.10355; AoiDragon/POPE 08d957b).

Three subsets of 3,000 questions differ in how the absent object is chosen: at random, among the
popular ones, or among those that often go with what is there. ``question_id`` repeats across them,
so an item's id is ``{subset}/{question_id}``.

Data: ``lmms-lab/POPE`` on the Hub or as local parquet, config ``default`` (one split ``test``, the
subset in ``category``) or ``Full`` (a split per subset); or the original
``coco_pope_{subset}.json``, one object a line or a list, with COCO's val2014 pictures beside them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from unigame.data import SkipReport
from unigame.data.tables import MalformedRow
from unigame.errors import UserError
from unigame.evaluation.base import (
    Benchmark,
    DatasetInfo,
    DataSource,
    Item,
    Loaded,
    Prediction,
    Scored,
)
from unigame.evaluation.coco_pictures import CocoPictures
from unigame.evaluation.items import Row, by_group, collect, loaded, replies, shown
from unigame.evaluation.source import BadRow, Rows, field, read_rows, table_rows
from unigame.evaluation.tasks.pope.rules import confusion, lmms_eval_label, official_label
from unigame.evaluation.tasks.vqav2.rules import INSTRUCTION
from unigame.reports.metrics import Metric, Unit

SUBSETS = ("adversarial", "popular", "random")

_STATISTICS = {
    "f1": "F1",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "yes_ratio": "yes ratio",
}
_YES_OR_NO = re.compile(r"\b(yes|no|not)\b", re.IGNORECASE)
_STARTS_WITH_NO = re.compile(r"\W*no\b", re.IGNORECASE)


class POPE(Benchmark):
    """F1, accuracy, precision, recall and share of "yes", averaged over subsets and per subset.

    Parsers: ``official``, as POPE's own script, BAGEL, InternVL and TorchUMM do. ``lmms_eval``
    follows lmms-eval 0.7.3 with its two traps: a reply that is neither word lowers accuracy but
    neither precision nor recall, and the yes ratio is that of the *true* answers.
    """

    name = "pope"
    title = "POPE"
    group = "understanding"
    task = "answer"
    prompt_variants = ("lmms_eval", "bare")
    parser_variants = ("official", "lmms_eval")
    max_new_tokens = 128
    stop = ("\n\n",)
    hub_id: ClassVar[str] = "lmms-lab/POPE"

    def prompt_for(self, question: str) -> str:
        """What the model is asked; POPE itself prescribes no instruction (``bare``)."""
        return f"{question.strip()}\n{INSTRUCTION}" if self.prompt == "lmms_eval" else question

    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """All subsets, or the one that the source's split names.

        With ``limit``, every subset gives an equal share, from its start.
        """
        rows = read_pope(source, self.hub_id)
        where = str(rows.root or rows.info.id)
        subsets = _wanted(source)
        found, skips = _by_subset(rows.rows, where, subsets)
        share = None if limit is None else math.ceil(limit / len(found))
        items: list[Item] = []
        for subset in subsets:
            if subset in found:
                to_item = partial(self._item, subset=subset, root=rows.root)
                place = f"{where} ({subset})"
                items += collect(found[subset], to_item, where=place, limit=share, skips=skips)[0]
        return loaded(items, rows.info, skips)

    def _item(self, row: Row, subset: str, root: Path | None) -> Item:
        id = field(row, "question_id", int | str)
        answer = field(row, "answer", str).strip().lower()
        if answer not in ("yes", "no"):
            raise BadRow(f"answer is {answer!r}, expected yes or no")
        return Item(
            id=f"{subset}/{id}",
            prompt=self.prompt_for(field(row, "question", str)),
            pictures=(shown(row, root),),
            reference={"subset": subset, "answer": answer},
            cluster=str(row.get("image_source") or ""),
        )

    def _label(self, reply: str) -> str:
        return official_label(reply) if self.parser == "official" else lmms_eval_label(reply)

    def right(self, item: Item, reply: str) -> float:
        """Whether the label that the parser reads is the true one; a reply without one is wrong."""
        said = _YES_OR_NO.search(reply) is not None
        return float(said and self._label(reply) == item.reference["answer"])

    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """Each statistic as the mean over subsets, F1 first, then for every subset."""
        units: list[Unit] = []
        truths: list[Unit] = []
        unparsed: list[str] = []
        misread = 0
        for item, reply in replies(items, predictions):
            truth, subset = item.reference["answer"], item.reference["subset"]
            label = self._label(reply)
            units.append(Unit(item.id, confusion(label, truth), item.cluster, subset))
            truths.append(Unit(item.id, (float(truth == "yes"),), item.cluster, subset))
            if label not in ("yes", "no") or not _YES_OR_NO.search(reply):
                unparsed.append(item.id)
            misread += label == "yes" and _STARTS_WITH_NO.match(reply) is not None
        groups = by_group(units)
        counts = {
            subset: {
                name: int(sum(unit.counts[k] for unit in groups[subset]))
                for k, name in enumerate(("TP", "FP", "FN", "TN"))
            }
            for subset in SUBSETS
            if subset in groups
        }
        return Scored(
            metrics=self._metrics(units, truths),
            unparsed=unparsed,
            details={"counts": counts},
            warnings=_warnings(counts, misread),
        )

    def _metrics(self, units: Sequence[Unit], truths: Sequence[Unit]) -> list[Metric]:
        means, parts = [], []
        for name, label in _STATISTICS.items():
            of_truth = name == "yes_ratio" and self.parser == "lmms_eval"
            these = tuple(truths if of_truth else units)
            make = partial(Metric, statistic="mean" if of_truth else name)
            means.append(make(name, f"POPE {label}", these, per_group=True))
            groups = by_group(these)
            parts += [
                make(f"{name}_{subset}", f"POPE {label}, {subset}", groups[subset])
                for subset in SUBSETS
                if subset in groups
            ]
        return means + parts


def _warnings(here: Iterable[str], misread: int) -> list[str]:
    warnings = []
    if missing := [subset for subset in SUBSETS if subset not in here]:
        warnings.append(
            f"no {' and no '.join(missing)} questions: the means are over fewer subsets"
        )
    if misread:
        warnings.append(
            f"{misread} replies begin with a no but were read as yes: the official parser knows "
            "the words No, no and not, in this spelling and before the first full stop"
        )
    return warnings


# ---- layouts, read into rows with the columns of lmms-lab/POPE -----------------------------------


def _wanted(source: DataSource) -> tuple[str, ...]:
    """The subset that the source's split names, or all."""
    return (source.split,) if source.split in SUBSETS else SUBSETS


def read_pope(source: DataSource, hub_id: str) -> Rows:
    """The rows of a source, in any of the layouts."""
    root = None if source.root is None else source.root.expanduser()
    if root is not None and (files := _original_files(root)):
        return _original(root, _chosen(source, files))
    needed = ("question_id", "question", "answer", "image")
    read = partial(read_rows, hub_id=hub_id)
    if not _has_split_per_subset(source, root):
        whole = replace(source, split=None) if source.split in SUBSETS else source
        return read(whole, config=None, split="test", required=(*needed, "category"))
    subsets = _wanted(source)
    parts = [
        read(replace(source, split=subset), config="Full", split=subset, required=needed)
        for subset in subsets
    ]
    rows = [
        {**row, "category": subset} if row else row
        for subset, part in zip(subsets, parts, strict=True)
        for row in part.rows
    ]
    return Rows(rows, replace(parts[0].info, split="+".join(subsets)), parts[0].root)


def _has_split_per_subset(source: DataSource, root: Path | None) -> bool:
    if root is None:
        return source.config == "Full" or (source.config is None and source.split in SUBSETS)
    return source.config == "Full" or any(
        next(root.glob(f"{folder}{subset}*"), None)
        for folder in ("", "data/", "Full/", "Full/data/")
        for subset in SUBSETS
    )


def _original_files(root: Path) -> dict[str, Path]:
    """POPE's own files by subset, in the folder itself or where its repository has them."""
    found: dict[str, Path] = {}
    for subset in SUBSETS:
        for folder in ("", "coco/", "output/coco/"):
            for suffix in ("json", "jsonl"):
                path = root / f"{folder}coco_pope_{subset}.{suffix}"
                if path.is_file():
                    found.setdefault(subset, path)
    return found


def _chosen(source: DataSource, files: Mapping[str, Path]) -> Mapping[str, Path]:
    """The files of the split that is asked for.

    Raises:
        UserError: it is no subset, or not there.
    """
    if source.split in (None, "test"):
        return files
    if source.split not in files:
        raise UserError(
            f"POPE has no split {source.split!r} here; choose from {', '.join(files)}, or leave "
            "--split out for all of them"
        )
    return {source.split: files[source.split]}


def _original(root: Path, files: Mapping[str, Path]) -> Rows:
    pictures = CocoPictures(root)
    rows: list[dict[str, Any]] = []
    for subset, path in files.items():
        # One object a line, or a list of them, whatever the file is called.
        for row in table_rows(path, ".jsonl"):
            if isinstance(row, MalformedRow):
                rows.append(MalformedRow("not a json object"))
                continue
            name = row.get("image")
            columns = {"question": row.get("text"), "answer": row.get("label")}
            place = {"image": pictures.by_name(name), "image_source": name, "category": subset}
            rows.append({**row, **columns, **place} if row else row)
    return Rows(rows, DatasetInfo(root.name, split="+".join(files)), root)


def _by_subset(
    rows: Iterable[dict[str, Any]], where: str, subsets: Sequence[str]
) -> tuple[dict[str, list[dict[str, Any]]], SkipReport]:
    """Rows of the wanted subsets; those that name none are counted."""
    found: dict[str, list[dict[str, Any]]] = {}
    skips = SkipReport()
    for number, row in enumerate(rows):
        try:
            subset = field(row, "category", str)
            if subset not in SUBSETS:
                raise BadRow(f"category is {subset!r}, expected {', '.join(SUBSETS)}")
        except BadRow as bad:
            skips.add(f"{where} row {number}", bad.reason)
            continue
        if subset in subsets:
            found.setdefault(subset, []).append(row)
    if not found:
        raise UserError(
            f"{where} has no row of {', '.join(subsets)} ({skips.summary()}); is it lmms-lab/POPE?"
        )
    return found, skips
