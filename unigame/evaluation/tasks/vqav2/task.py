"""VQAv2: open questions about COCO pictures, scored against ten annotators (arXiv 1612.00837).

Data: ``lmms-lab/VQAv2`` on the Hub or as local parquet, or VQA's own json with COCO's pictures::

    <root>/v2_OpenEnded_mscoco_val2014_questions.json
    <root>/v2_mscoco_val2014_annotations.json
    <root>/val2014/COCO_val2014_000000000042.jpg

The json files may also lie one folder deeper; so may the pictures, two folders deep at most, and
be named ``000000000042.jpg``, as COCO names them since 2017. Annotators are told apart by
position, so a set without ``answer_id`` scores like one with it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

from unigame.data.images import IMAGE_COLUMNS
from unigame.data.pairs import UnreadAnswers, find_columns, is_empty, raw_answers
from unigame.data.paths import is_mac_file
from unigame.data.tables import MalformedRow
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
from unigame.evaluation.coco_pictures import CocoPictures
from unigame.evaluation.items import Row, by_group, collect, loaded, replies, shown
from unigame.evaluation.source import BadRow, Rows, field, read_json, read_rows
from unigame.evaluation.tasks.vqav2.rules import INSTRUCTION, Variant, clean_reply, soft_score
from unigame.reports.metrics import Metric, Unit
from unigame.system.say import warn

SUBMISSION = "submission"
OWN_TABLE = (
    "Your own table: image, question, answers (ten times), and question_id and image_id where it "
    "has them, as in docs/tutorial.md, step 4"
)
_LONGEST_NAME = 255
"""Of a picture's file; longer text in its cell is the picture itself, in base64."""
FULL_VOTES = 4
"""Annotators who agree, for a full score: whoever is left out, three others are left."""


class VQAv2(Benchmark):
    """Mean leave-one-out agreement with ten annotators, in percent; then by type of answer.

    Prompts: ``lmms_eval`` puts the instruction on a line of its own, ``torchumm_unigame`` after a
    blank (so do BAGEL and InternVL), ``bare`` leaves it out.

    Parsers: those of ``rules.py``; ``torchumm_unigame`` is ``textvqa`` after that script's clean-up
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
        joint = {"lmms_eval": "\n", "torchumm_unigame": " "}.get(self.prompt)
        return question if joint is None else f"{question}{joint}{INSTRUCTION}"

    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Questions of ``validation``, or of the source's split."""
        data = self._rows(source)
        where = str(data.root or data.info.id)
        if self.parser != SUBMISSION and not any(row.get("answers") for row in data.rows):
            for name in ("answer", "multiple_choice_answer"):
                if any(row.get(name) for row in data.rows):
                    raise UserError(
                        f"{where} has {name!r}, {self.title} wants the list 'answers', one of each "
                        "annotator: write a sure answer ten times (docs/tutorial.md, step 4)"
                    )
            raise UserError(
                f"{where} has no answers for split {data.info.split!r}: only the challenge server "
                "can score a test split; use split validation (with its annotations), or "
                f"--parser {self.name}={SUBMISSION}, which writes the file to upload"
            )
        to_item = partial(self._item, root=data.root)
        items, skips = collect(_under_our_names(data, where), to_item, where=where, limit=limit)
        if not any(item.pictures for item in items):
            raise UserError(
                f"{where} has no usable row: no question has a picture; is their folder there?"
            )
        for line in self._few_votes(items):
            warn(f"{where}: {line}")
        return loaded(items, data.info, skips)

    def _rows(self, source: DataSource) -> Rows:
        split = source.split or "validation"
        root = None if source.root is None else source.root.expanduser()
        if root is not None and _files(root, "questions"):
            return Rows(read_vqa_files(root, split), DatasetInfo(root.name, split=split), root)
        needed: tuple[str | tuple[str, ...], ...] = ("question", IMAGE_COLUMNS)
        if self.parser == SUBMISSION:  # the server knows its questions by their ids
            needed = ("question_id", *needed)
        return read_rows(
            source, hub_id=self.hub_id, config=None, split=split, required=needed, own=OWN_TABLE
        )

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
        reference: dict[str, Any] = {}
        if self.parser != SUBMISSION:
            reference["answers"] = answers_of(row)
        if isinstance(kind := row.get("answer_type"), str):
            reference["answer_type"] = kind
        return Item(
            id=id,
            prompt=self.prompt_for(field(row, "question", str)),
            pictures=(shown(row, root),),
            reference=reference,
            cluster=_cluster(row),
        )

    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """Accuracy over all questions, and for each type of answer that the data tell apart."""
        said = list(replies(items, predictions))
        if self.parser == SUBMISSION:
            texts = {item.id: text for item, text in said}
            return _submission(items, texts, folder / "submission.json")
        of_type = [
            Unit(
                item.id,
                (self.score_reply(text, item.reference["answers"]),),
                item.cluster,
                str(item.reference.get("answer_type", "")),
            )
            for item, text in said
        ]
        units = tuple(replace(unit, group="") for unit in of_type)
        metrics = [Metric("accuracy", f"{self.title} accuracy", units)]
        for kind, some in sorted(by_group(of_type).items()):
            if kind and len(some) < len(units):
                name = "accuracy_" + kind.replace("/", "_")
                these = tuple(replace(unit, group="") for unit in some)
                metrics.append(Metric(name, f"{self.title} accuracy, {kind}", these))
        return Scored(metrics, warnings=self._few_votes(items))

    def _few_votes(self, items: Sequence[Item]) -> list[str]:
        """That some questions have too few annotators for a full score, with what mends it."""
        votes = [len(item.reference.get("answers", ())) for item in items]
        few = [count for count in votes if count < FULL_VOTES]
        if self.parser == SUBMISSION or not few:
            return []
        most = 100 * min(1.0, (max(few) - 1) / 3)
        return [
            f"{len(few)} of {len(votes)} questions have fewer than {FULL_VOTES} answers, and VQA's "
            f"vote, which leaves one annotator out, gives any reply to these {most:.0f} % at most; "
            "repeat a sure answer ten times to score by exact match"
        ]

    def score_reply(self, reply: str, answers: Sequence[str]) -> float:
        """The soft score of one reply, in [0, 1], as the parser variant has it."""
        if self.parser == "torchumm_unigame":
            return soft_score(clean_reply(reply), answers, "textvqa")
        return soft_score(reply, answers, cast(Variant, self.parser))


def answers_of(row: Row) -> list[str]:
    """The annotators' answers, in order, from a cell as training reads it.

    Raises:
        BadRow: there are none, or some that training does not read either.
    """
    cell = field(row, "answers", object)
    try:
        texts = raw_answers(cell)
    except UnreadAnswers as error:
        detail = f"answers is {cell!r:.60}; {error.fix}"
        raise BadRow(f"answers: {error.reason}", detail) from None
    if not texts:
        raise BadRow("no answers")
    return [sys.intern(text) for text in texts]  # two million annotations are few words


def _under_our_names(data: Rows, where: str) -> Iterator[Row]:
    """The rows under the names of the Hub's columns, of which a table of one's own may lack some.

    A picture is found under the names that training knows; without question_id a row's number is
    its id.
    """
    image = find_columns(data.columns, None, where=where).get("image", "image")
    numbered = bool(data.columns) and "question_id" not in data.columns
    for number, row in enumerate(data.rows):
        found: dict[str, Any] = {"question_id": number} if numbered else {}
        if image != "image":
            found["image"] = row.get(image)
        yield {**row, **found} if row and found else row  # a malformed row has a reason instead


def _cluster(row: Row) -> str:
    """The picture of a question by its id, or by its file where the table has no ids."""
    named = row.get("image_id")
    if is_empty(named) or named == "":
        cell = row.get("image")
        named = cell if isinstance(cell, str) and len(cell) <= _LONGEST_NAME else ""
    return str(named)


def _submission(items: Sequence[Item], texts: Mapping[str, str], path: Path) -> Scored:
    """The file that VQA's and AdVQA's challenge servers take, and no figure.

    The servers refuse a file that lacks a question: one without a reply gets an empty answer.
    """
    if not texts:
        raise UserError(
            "no question has a reply, so there is nothing to submit; see the skip counts"
        )
    rows = [
        {
            "question_id": int(item.id) if re.fullmatch(r"-?\d+", item.id) else item.id,
            "answer": texts.get(item.id, "").strip(),
        }
        for item in items
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


# ---- VQA's own files -----------------------------------------------------------------------------

# Split -> how file names spell it, without hyphens.
_IN_NAMES = {"validation": "val", "test": "test(?!dev)"}


def read_vqa_files(root: Path, split: str) -> list[dict[str, Any]]:
    """The questions of a split, each with its answers and picture, as rows of the Hub's columns.

    A question without an annotation, or one that contradicts it, becomes a ``MalformedRow``; one
    without a picture has None as its ``image``. Where a split has no annotations (test splits),
    rows lack ``answers``.

    Raises:
        UserError: no file for the split, several, one without its list, or files that do not
            belong together.
    """
    questions = _of_split(_files(root, "questions"), split, root)
    asked = _list_in(questions, "questions")
    annotations, answered = _files(root, "annotations"), None
    if any(_is_of(path, split) for path in annotations):
        answered = _annotated(_of_split(annotations, split, root))
        if not any(_id_of(question) in answered for question in asked):
            raise UserError(
                f"no question of {questions.name} is annotated in {root}; "
                "take both files of the same split"
            )
    # COCO's split whose pictures are meant; test-dev asks about the pictures of the test split.
    named = re.search(r"(train|val|test)(?:-?dev)?(\d{4})", questions.name)
    pictures = CocoPictures(root, "".join(named.groups()) if named else None)
    return [_joined(question, answered, pictures) for question in asked]


def _joined(
    question: Any, answered: dict[Any, dict[str, Any]] | None, pictures: CocoPictures
) -> dict[str, Any]:
    if not isinstance(question, dict):
        return MalformedRow("question is not an object")
    row = dict(question)
    if answered is not None:
        annotation = answered.get(_id_of(question))
        if annotation is None:
            return MalformedRow("no annotation for the question")
        image_id = question.get("image_id")
        if annotation.get("image_id", image_id) != image_id:
            return MalformedRow("question and annotation have different image_id")
        row = {**annotation, **question}
    # None where it is not there: a submission names such a question, too.
    row["image"] = pictures.by_id(row.get("image_id"))
    return row


def _id_of(entry: Any) -> Any:
    """The question's id; None where it has none that could be looked up."""
    id = entry.get("question_id") if isinstance(entry, dict) else None
    return id if isinstance(id, int | str) else None


def _annotated(path: Path) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for entry in _list_in(path, "annotations"):
        id = _id_of(entry)
        if id is not None and found.setdefault(id, entry) != entry:
            raise UserError(
                f"{path} has two annotations of question {id} that differ; keep one of them"
            )
    return found


def _list_in(path: Path, key: str) -> list[Any]:
    content = read_json(path)
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f'{path} has no list "{key}"; is it VQA\'s file of {key}, downloaded whole?'
        )
    return entries


def _files(root: Path, what: str) -> list[Path]:
    found = [path for pattern in ("", "*/") for path in root.glob(f"{pattern}*{what}*.json")]
    return sorted(path for path in found if path.is_file() and not is_mac_file(path.name))


def _is_of(path: Path, split: str) -> bool:
    """Whether a file is of the split, by its name; one that names no split may be of any."""
    name, split = path.name.replace("-", ""), split.replace("-", "")
    wanted = _IN_NAMES.get(split, re.escape(split))
    return bool(re.search(wanted, name)) or not re.search("train|val|test", name)


def _of_split(files: list[Path], split: str, root: Path) -> Path:
    chosen = [path for path in files if _is_of(path, split)]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(str(path.relative_to(root)) for path in chosen or files)
    if chosen:
        raise UserError(f"{root} holds several files of split {split!r}: {names}; keep one")
    raise UserError(f"{root} has no file of split {split!r}, only {names}; choose another --split")
