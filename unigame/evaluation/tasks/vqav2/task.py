"""VQAv2: open questions about COCO pictures, scored against ten annotators (arXiv 1612.00837).

Data: ``lmms-lab/VQAv2`` on the Hub or as local parquet, or VQA's own json with COCO's pictures
(``files.py``). Annotators are told apart by position, so a set without ``answer_id`` scores
like one with it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

from unigame.errors import UserError
from unigame.evaluation.base import (
    Benchmark,
    DatasetInfo,
    DataSource,
    Group,
    Item,
    Loaded,
    Prediction,
    Scored,
)
from unigame.evaluation.items import Row, collect, shown
from unigame.evaluation.source import BadRow, Rows, field, fingerprint, read_rows
from unigame.evaluation.tasks.vqav2.files import has_vqa_files, read_vqa_files
from unigame.evaluation.tasks.vqav2.rules import INSTRUCTION, Variant, clean_reply, soft_score
from unigame.reports.metrics import Metric, Unit

SUBMISSION = "submission"


class VQAv2(Benchmark):
    """Mean leave-one-out agreement with ten annotators, in percent.

    Prompts: ``lmms_eval`` puts the instruction on a line of its own, ``torchumm_unigame`` after a
    blank (so do BAGEL and InternVL), ``bare`` leaves it out.

    Parsers: those of ``vqa_text``; ``torchumm_unigame`` is ``textvqa`` after that script's clean-up
    of the reply; ``submission`` scores nothing, needs no answers, and writes ``submission.json``
    for the challenge server: the only way to a figure on a test split.
    """

    name = "vqav2"
    title = "VQAv2"
    group: ClassVar[Group] = "understanding"
    task = "answer"
    prompt_variants = ("lmms_eval", "torchumm_unigame", "bare")
    parser_variants = ("lmms_eval", "official", "textvqa", "torchumm_unigame", SUBMISSION)
    stop = ("\n\n",)
    hub_id: ClassVar[str | None] = "lmms-lab/VQAv2"

    def prompt_for(self, question: str) -> str:
        """What the model is asked."""
        match self.prompt:
            case "lmms_eval":
                return f"{question}\n{INSTRUCTION}"
            case "torchumm_unigame":
                return f"{question} {INSTRUCTION}"
        return question

    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Questions of ``validation``, or of the source's split.

        Raises:
            UserError: no data, another layout, or a split without answers (unless for a
                submission).
        """
        data = self._rows(source)
        where = str(data.root or data.info.id)
        if self.parser != SUBMISSION and not any(row.get("answers") for row in data.rows):
            raise UserError(
                f"{where} has no answers for split {data.info.split!r}: only the challenge server "
                "can score a test split; use split validation (with its annotations), or "
                f"--parser {self.name}={SUBMISSION}, which writes the file to upload"
            )
        items, skips = collect(
            data.rows, partial(self._item, root=data.root), where=where, limit=limit
        )
        if not any(item.pictures for item in items):
            raise UserError(
                f"{where} has no usable row: no question has a picture; is their folder there?"
            )
        return Loaded(items, replace(data.info, fingerprint=fingerprint(items)), skips)

    def _rows(self, source: DataSource) -> Rows:
        split = source.split or "validation"
        if source.root is not None:
            root = source.root.expanduser()
            if has_vqa_files(root):
                return Rows(read_vqa_files(root, split), DatasetInfo(root.name, split=split), root)
        needed = ("question_id", "question", "image")
        return read_rows(source, hub_id=self.hub_id, config=None, split=split, required=needed)

    def _item(self, row: Row, root: Path | None) -> Item:
        try:
            return self._asked(row, root)
        except BadRow:
            if self.parser != SUBMISSION:
                raise
            # The server refuses a file without a line for every question. Without a picture the
            # item is not asked, but counted as skipped.
            return Item(id=str(field(row, "question_id", int | str)), prompt="")

    def _asked(self, row: Row, root: Path | None) -> Item:
        id = str(field(row, "question_id", int | str))
        reference: dict[str, Any] = (
            {} if self.parser == SUBMISSION else {"answers": answers_of(row)}
        )
        if isinstance(kind := row.get("answer_type"), str):
            reference["answer_type"] = kind
        return Item(
            id=id,
            prompt=self.prompt_for(field(row, "question", str)),
            pictures=(shown(row, root),),
            reference=reference,
            cluster=str(row.get("image_id") or ""),
        )

    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """Accuracy over all questions, and for each type of answer that the data tell apart."""
        replies = [
            (item, predictions[item.id].text)
            for item in items
            if item.id in predictions and not predictions[item.id].error
        ]
        if self.parser == SUBMISSION:
            return _submission(
                items, {item.id: text for item, text in replies}, folder / "submission.json"
            )
        units = [
            Unit(item.id, (self.score_reply(text, item.reference["answers"]),), item.cluster)
            for item, text in replies
        ]
        metrics = [Metric("accuracy", f"{self.title} accuracy", tuple(units))]
        kinds = [str(item.reference.get("answer_type", "")) for item, _ in replies]
        for kind in sorted(set(kinds) - {""}):
            of_kind = tuple(u for u, its_kind in zip(units, kinds, strict=True) if its_kind == kind)
            if len(of_kind) < len(units):
                name = "accuracy_" + kind.replace("/", "_")
                metrics.append(Metric(name, f"{self.title} accuracy, {kind}", of_kind))
        return Scored(metrics)

    def score_reply(self, reply: str, answers: Sequence[str]) -> float:
        """The soft score of one reply, in [0, 1], as the parser variant has it."""
        if self.parser == "torchumm_unigame":
            return soft_score(clean_reply(reply), answers, "textvqa")
        return soft_score(reply, answers, cast(Variant, self.parser))


def answers_of(row: Row) -> list[str]:
    """The annotators' answers, in order.

    Raises:
        BadRow: there are none, or not as a list of texts or of ``{"answer": text}``.
    """
    cell: Any = field(row, "answers", (list, dict))
    if isinstance(cell, dict):  # older `datasets` turn a list of mappings inside out
        cell = field(cell, "answer", list)
    texts = [entry.get("answer") if isinstance(entry, dict) else entry for entry in cell]
    if not texts:
        raise BadRow("no answers")
    for text in texts:
        if not isinstance(text, str):
            raise BadRow(f"an answer is {type(text).__name__}, expected str")
    return [sys.intern(str(text)) for text in texts]  # two million annotations are few words


def _submission(items: Sequence[Item], texts: Mapping[str, str], path: Path) -> Scored:
    """The file that VQA's and AdVQA's challenge servers take, and no figure.

    Args:
        items: all questions: the servers refuse a file that lacks one.
        texts: replies by item id; a question without one gets an empty answer.
        path: where to write.

    Raises:
        UserError: there is no reply at all.
    """
    if not texts:
        raise UserError(
            "no question has a reply, so there is nothing to submit; see the skip counts"
        )
    rows = [
        {"question_id": _whole(item.id), "answer": texts.get(item.id, "").strip()} for item in items
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")
    warnings = [f"nothing was scored: upload {path} to the challenge server"]
    if lacking := sum(item.id not in texts for item in items):
        warnings.append(
            f"{lacking} of {len(items)} questions have an empty answer in {path.name}, because "
            "their picture or question could not be read"
        )
    return Scored(metrics=[], details={"submission": str(path)}, warnings=warnings)


def _whole(id: str) -> int | str:
    """The id as the challenges write it: a whole number."""
    return int(id) if re.fullmatch(r"-?\d+", id) else id
