"""POPE: is there a {object} in the picture? (Li et al., 2305.10355; AoiDragon/POPE 08d957b).

Three subsets of 3,000 questions differ in how the absent object is chosen: at random, among the
popular ones, or among those that often go with what is there. ``question_id`` repeats across them,
so an item's id is ``{subset}/{question_id}``. ``rows.py`` reads the data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from unigame.evaluation.base import (
    Benchmark,
    DataSource,
    Item,
    Loaded,
    Prediction,
    Scored,
)
from unigame.evaluation.items import Row, collect, shown
from unigame.evaluation.source import BadRow, field, fingerprint
from unigame.evaluation.tasks.pope.rows import SUBSETS, by_subset, read_pope, wanted_subsets
from unigame.evaluation.tasks.vqav2.rules import INSTRUCTION
from unigame.reports.metrics import Metric, Unit

_STATISTICS = {
    "f1": "F1",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "yes_ratio": "yes ratio",
}
_YES_OR_NO = re.compile(r"\b(yes|no|not)\b", re.IGNORECASE)
_STARTS_WITH_NO = re.compile(r"\W*no\b", re.IGNORECASE)


def official_label(reply: str) -> str:
    """``no`` if the first sentence has the word "No", "no" or "not", else ``yes``.

    The spelling is exact: ``NO``, ``nope``, ``Not sure`` and an empty reply are ``yes``.
    """
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def lmms_eval_label(reply: str) -> str:
    """The reply in lower case; only exactly ``yes`` and ``no`` count as an answer."""
    return reply.lower().strip()


def confusion(label: str, truth: str) -> tuple[float, float, float, float]:
    """(tp, fp, fn, tn) of one question, "yes" being positive; all 0 where the reply is neither."""
    pairs = (("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no"))
    tp, fp, fn, tn = (float((label, truth) == pair) for pair in pairs)
    return tp, fp, fn, tn


class POPE(Benchmark):
    """F1, accuracy, precision, recall and share of "yes", per subset and averaged over subsets.

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

    # ---- data ------------------------------------------------------------------------------------

    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """All subsets, or the one that the source's split names.

        With ``limit``, every subset gives an equal share, from its start.

        Raises:
            UserError: no data, or not in a layout of POPE's.
        """
        rows = read_pope(source, self.hub_id)
        where = str(rows.root or rows.info.id)
        subsets = wanted_subsets(source)
        found, skips = by_subset(rows.rows, where, subsets)
        share = None if limit is None else math.ceil(limit / len(found))
        items: list[Item] = []
        for subset in subsets:
            if subset in found:
                to_item = partial(self._item, subset=subset, root=rows.root)
                items += collect(
                    found[subset],
                    to_item,
                    where=f"{where} ({subset})",
                    limit=share,
                    skips=skips,
                )[0]
        return Loaded(items, replace(rows.info, fingerprint=fingerprint(items)), skips)

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

    # ---- metrics ---------------------------------------------------------------------------------

    def label(self, reply: str) -> str:
        """What a reply is read as."""
        return official_label(reply) if self.parser == "official" else lmms_eval_label(reply)

    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """Each statistic as the mean over subsets, F1 first, then for every subset."""
        units: list[Unit] = []
        truths: list[Unit] = []
        unparsed: list[str] = []
        misread = 0
        for item in items:
            prediction = predictions.get(item.id)
            if prediction is None or prediction.error:
                continue
            truth, subset = item.reference["answer"], item.reference["subset"]
            label = self.label(prediction.text)
            units.append(Unit(item.id, confusion(label, truth), item.cluster, subset))
            truths.append(Unit(item.id, (float(truth == "yes"),), item.cluster, subset))
            if label not in ("yes", "no") or not _YES_OR_NO.search(prediction.text):
                unparsed.append(item.id)
            misread += label == "yes" and _STARTS_WITH_NO.match(prediction.text) is not None
        return Scored(
            metrics=self._metrics(units, truths),
            unparsed=unparsed,
            details={"counts": _counts(units)},
            warnings=_warnings(units, misread),
        )

    def _metrics(self, units: Sequence[Unit], truths: Sequence[Unit]) -> list[Metric]:
        means, parts = [], []
        for name, label in _STATISTICS.items():
            of_truth = name == "yes_ratio" and self.parser == "lmms_eval"
            these = tuple(truths if of_truth else units)
            make = partial(Metric, statistic="mean" if of_truth else name)
            means.append(make(name, f"POPE {label}", these, per_group=True))
            for subset in SUBSETS:
                if part := tuple(unit for unit in these if unit.group == subset):
                    parts.append(make(f"{name}_{subset}", f"POPE {label}, {subset}", part))
        return means + parts


def _counts(units: Sequence[Unit]) -> dict[str, dict[str, int]]:
    """Confusion counts of every subset."""
    return {
        subset: {
            name: int(sum(unit.counts[k] for unit in units if unit.group == subset))
            for k, name in enumerate(("TP", "FP", "FN", "TN"))
        }
        for subset in SUBSETS
        if any(unit.group == subset for unit in units)
    }


def _warnings(units: Sequence[Unit], misread: int) -> list[str]:
    warnings = []
    here = {unit.group for unit in units}
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
