"""MMMU: college-level questions with up to seven pictures, in 30 subjects (arXiv 2311.16502).

Report on ``validation`` (900 questions, 30 a subject); ``test`` has no answers. Prompts and rules
are those of lmms-eval 0.7.3, of the official repository and of BAGEL's runner, by variant.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from unigame.data.pairs import as_text
from unigame.errors import UserError
from unigame.evaluation.base import (
    Benchmark,
    DataSource,
    Item,
    Loaded,
    Picture,
    Prediction,
    Scored,
)
from unigame.evaluation.items import Row, collect, loaded, replies, shown
from unigame.evaluation.source import BadRow, Rows, field, read_rows
from unigame.evaluation.tasks.mmmu.rules import (
    MULTIPLE_CHOICE,
    OPEN,
    SUBJECTS,
    build_prompt,
    choice_correct,
    counted_shares,
    lettered,
    open_correct,
    parse_choice,
    parse_open,
    summarise,
)
from unigame.reports.metrics import Metric, Unit

PER_SUBJECT_HUB_ID = "MMMU/MMMU"

_REQUIRED = ("id", "question", "options", "answer", "question_type")
_ID = re.compile(r"[^_]+_(.+?)_\d+")
_MARK = re.compile(r"<image (\d+)>")
_NO_ANSWER = ("", "?")


def subject_of(id: str) -> str:
    """``Art_Theory`` of ``validation_Art_Theory_3``.

    Raises:
        BadRow: the id is not built like that.
    """
    if (found := _ID.fullmatch(id)) is None:
        raise BadRow("id is not split_Subject_number")
    return found.group(1)


class MMMU(Benchmark):
    """MMMU. Headline: accuracy over questions (lmms-eval's instance-weighted mean over subjects).

    Parser variants: ``official`` and ``lmms_eval`` differ in multiple choice only; a reply that
    they cannot read becomes a random letter, drawn per question and counted as unparsed. ``bagel``
    takes the first character or the first option text contained, and draws nothing; ``text`` (ours)
    takes a letter or the words of exactly one option.
    """

    name = "mmmu"
    title = "MMMU"
    group = "understanding"
    task = "answer"
    prompt_variants = ("lmms_eval", "torchumm", "bare")
    parser_variants = ("lmms_eval", "official", "bagel", "text")
    max_new_tokens = 128
    stop = ("\n\n",)

    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Of 30 subjects, in one set or a set each.

        A local folder holds one folder per subject (``Art/validation-*.parquet``), as
        ``MMMU/MMMU`` does, or all subjects in one set, as ``lmms-lab/MMMU`` does. From the Hub the
        latter is the default; ``hub_id="MMMU/MMMU"`` reads all 30 configurations, or the one that
        ``config`` names. A question is shown the pictures whose marks occur in it or its options.
        """
        parts = _parts(source)
        info, rows = parts[0].info, [row for part in parts for row in part.rows]
        if all(row.get("answer") in (None, *_NO_ANSWER) for row in rows):
            raise UserError(
                f"{info.id}, split {info.split!r}, has no answers to compare with (MMMU's test "
                "answers are not public); use --split validation"
            )
        if len(parts) > 1:
            info = replace(info, config="all subjects")
        to_item = partial(self._item, root=parts[0].root)
        items, skips = collect(rows, to_item, where=str(parts[0].root or info.id), limit=limit)
        return loaded(items, info, skips)

    def _item(self, row: Row, root: Path | None) -> Item:
        id, question = field(row, "id", str), field(row, "question", str)
        kind = field(row, "question_type", str)
        if kind not in (MULTIPLE_CHOICE, OPEN):
            raise BadRow(f"question_type is neither {MULTIPLE_CHOICE} nor {OPEN}")
        options = _read_list(field(row, "options", str | list), numbers=True)
        if options is None:
            raise BadRow("options is not a list of strings")
        answer = _answer(row, options if kind == MULTIPLE_CHOICE else None)
        return Item(
            id=id,
            prompt=build_prompt(question, options, kind, self.prompt),
            pictures=_pictures(row, [question, *options], root),
            reference={
                "question_type": kind,
                "options": options if kind == MULTIPLE_CHOICE else [],
                "answer": answer,
                "subject": subject_of(id),
            },
        )

    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """Accuracy; in the details also per domain, per subject and per kind of question."""
        units: list[Unit] = []
        unparsed: list[str] = []
        drawn, kinds = 0, []
        for item, reply in replies(items, predictions):
            right, parsed, random = self.mark(item, reply)
            units.append(Unit(item.id, (float(right),), group=item.reference["subject"]))
            kinds.append((item.reference["question_type"], right))
            drawn += random
            if not parsed:
                unparsed.append(item.id)
        details = summarise((unit.group, bool(unit.counts[0])) for unit in units)
        details["question_types"] = counted_shares(kinds)
        details["random_letters"] = drawn
        details["several_pictures"] = sum(len(item.pictures) > 1 for item in items)
        subjects = {item.reference["subject"] for item in items}
        warnings = []
        if missing := len(set(SUBJECTS) - subjects):
            warnings.append(f"{missing} of MMMU's {len(SUBJECTS)} subjects were not asked about")
        return Scored(
            metrics=[Metric("accuracy", "accuracy", tuple(units))],
            unparsed=unparsed,
            details=details,
            warnings=warnings,
        )

    def right(self, item: Item, reply: str) -> float:
        """Whether the reply is right; a letter that was drawn for an unreadable one is not."""
        right, _, random = self.mark(item, reply)
        return float(right and not random)

    def mark(self, item: Item, reply: str) -> tuple[bool, bool, bool]:
        """Whether a reply is right, whether it could be read, and whether its letter was drawn."""
        gold = item.reference["answer"]
        if item.reference["question_type"] == OPEN:
            # The official answers to open questions are lists; lmms-eval takes the text of the data
            # as it stands, so that what looks like a list is matched by nothing.
            if isinstance(gold, str) and self.parser != "lmms_eval":
                gold = _read_list(gold) or gold
            return open_correct(gold, parse_open(reply)), bool(reply.strip()), False
        choice = parse_choice(reply, item.reference["options"], self.parser, item.id)
        return choice_correct(gold, choice.letter), choice.parsed, choice.random


# ---- rows ----------------------------------------------------------------------------------------


def _parts(source: DataSource) -> list[Rows]:
    """The one set, or one for each subject."""
    if source.root is not None:
        root = source.root.expanduser()
        configs = [subject for subject in SUBJECTS if (root / subject).is_dir()]
    else:
        configs = list(SUBJECTS) if source.hub_id == PER_SUBJECT_HUB_ID else []
        if configs and source.config not in (None, *SUBJECTS):
            raise UserError(
                f"{PER_SUBJECT_HUB_ID} has no configuration {source.config!r}; its configurations "
                f"are the subjects: {', '.join(SUBJECTS)}"
            )
    chosen = [source.config] if source.config is not None or not configs else configs
    return [
        read_rows(
            source,
            hub_id="lmms-lab/MMMU",
            config=config,
            split="validation",
            required=_REQUIRED,
        )
        for config in chosen
    ]


def _read_list(value: str | list[Any], numbers: bool = False) -> list[str] | None:
    """A list of strings, stored as the text of a Python list or, in json, as a list; else None.

    With ``numbers`` whole numbers in it are read as their text.
    """
    read: Any = value
    if isinstance(value, str):
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if numbers and isinstance(read, list):
        read = [as_text(each) for each in read]
    strings = isinstance(read, list) and all(isinstance(text, str) for text in read)
    return read if strings else None


def _answer(row: Row, options: Sequence[str] | None) -> str | list[str]:
    """The answer, or several; letters where there are options."""
    answer = as_text(field(row, "answer", str | list | int))
    if answer in _NO_ANSWER:
        raise BadRow("no answer")
    answers = [answer] if isinstance(answer, str) else _read_list(answer, numbers=True)
    if not answers:
        raise BadRow("answer is not a list of strings")
    if options is not None:
        if not 2 <= len(options) <= 26:
            raise BadRow("options are not 2 to 26")
        if not set(answers) <= lettered(options).keys():
            raise BadRow("answer is not the letter of an option")
    return answer if isinstance(answer, str) else answers


def _pictures(row: Row, texts: Sequence[str], root: Path | None) -> tuple[Picture, ...]:
    """The pictures whose marks occur in the question or its options, by number."""
    numbers = {int(number) for text in texts for number in _MARK.findall(text)}
    return tuple(shown(row, root, f"image_{number}") for number in sorted(numbers))
