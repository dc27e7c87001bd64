"""MMBench: every question is asked once per option, with the options shifted (arXiv 2307.06281).

CircularEval counts a question only if all its rotations are answered right, so that a model which
likes one letter scores near 0. Rotation ``k`` of the question with index ``i`` has the index
``i + k * 1,000,000``. Prompts and rules are those of lmms-eval 0.7.3, of VLMEvalKit as TorchUMM
083395e has it, and of BAGEL, by variant.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unigame.data import SkipReport
from unigame.data.pairs import as_text
from unigame.data.pictures import content_key
from unigame.errors import UserError
from unigame.evaluation.base import Benchmark, DataSource, Item, Loaded, Prediction, Scored
from unigame.evaluation.items import Row, loaded, replies, require, shares, shown
from unigame.evaluation.scorers.matcher import HFMatcher, Matcher, matcher_name, resolve_matcher
from unigame.evaluation.source import BadRow, Rows, field, read_rows
from unigame.evaluation.store import JsonlStore
from unigame.evaluation.tasks.mmbench.rules import PARSERS, REFUSED, build_prompt, circular_hit
from unigame.reports.metrics import Metric, Unit

CONFIGS = ("en", "cn", "cc")

_ROTATION = 1_000_000
_TRIES = 3
_SEED = 2680
_MANY_UNPARSED = 0.05


@dataclass(frozen=True)
class _Asked:
    """One rotation, the model's reply, and the letter it stands for.

    ``drawn``: the letter was drawn at random, because the matcher did not help.
    """

    item: Item
    reply: str
    letter: str | None
    drawn: bool = False

    @property
    def right(self) -> bool:
        return self.letter == self.item.reference["answer"]


class MMBench(Benchmark):
    """MMBench. Headline: CircularEval accuracy over questions; second, the unrotated questions'.

    Args:
        prompt: ``lmms_eval``, ``vlmevalkit``, ``bagel`` or ``bare``.
        parser: ``lmms_eval`` or ``vlmevalkit``: how letters are read from replies.
        matcher: what is asked about replies that the rules cannot read, three times at most; a
            random letter after that, as in the references, drawn per question and counted as
            unparsed. A callable, or ``"hf:ID"``. None: such replies are wrong.

    Raises:
        UserError: an unknown variant, or a matcher that is neither.
    """

    name = "mmbench"
    title = "MMBench"
    group = "understanding"
    task = "answer"
    prompt_variants = ("lmms_eval", "vlmevalkit", "bagel", "bare")
    parser_variants = ("lmms_eval", "vlmevalkit")
    max_new_tokens = 1024
    stop = ("ASSISTANT:",)

    def __init__(
        self,
        *,
        prompt: str | None = None,
        parser: str | None = None,
        matcher: Matcher | str | None = None,
    ) -> None:
        super().__init__(prompt=prompt, parser=parser)
        self.matcher = resolve_matcher(matcher)

    def variant(self) -> dict[str, Any]:
        """Prompt, parser and matcher."""
        return {**super().variant(), "matcher": matcher_name(self.matcher)}

    def prepare(self) -> None:
        """See that the matcher is there, before the model is asked anything."""
        if isinstance(self.matcher, HFMatcher):
            self.matcher.check()

    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Questions with all their rotations; ``limit`` is rounded up to whole questions.

        Parquet as in ``lmms-lab/MMBench`` (configurations ``en``, ``cn``, ``cc``), or a tsv with
        pictures in base64. A question with an unusable rotation is left out as a whole.
        """
        config = source.config or "en"
        if config not in CONFIGS:
            raise UserError(
                f"MMBench has no configuration {config!r}; choose from {', '.join(CONFIGS)}"
            )
        _require_config(source, config)
        rows = read_rows(
            source,
            hub_id="lmms-lab/MMBench",
            config=config,
            split="test" if config == "cc" else "dev",
            required=("index", "question", "A", "B", "image"),
        )
        found, skips = self._questions(rows, config, limit)
        return loaded(found, rows.info, skips)

    def _questions(
        self, rows: Rows, config: str, limit: int | None
    ) -> tuple[list[Item], SkipReport]:
        """The rotations of all questions whose every rotation is usable, in the data's order."""
        skips, table = SkipReport(), list(rows.rows)
        if all(row.get("answer") in (None, "", "nan") for row in table):
            raise UserError(
                f"{rows.info.id}, split {rows.info.split!r}, has no answers to compare with "
                "(MMBench's test answers are not in it); use --split dev, or --split test with "
                "MMBench_TEST_EN_V11.tsv, whose answers were released"
            )
        pictures, found, broken = _pictures(table), dict[int, Item](), set[int]()
        for number, row in enumerate(table):
            try:
                index = field(row, "index", int)
            except BadRow as bad:
                skips.add(f"row {number}", bad.reason)
                continue
            if index in found:
                skips.add(f"{index} (row {number})", "duplicate index")
                continue
            try:
                cell = {"image": pictures.get(index)}
                found[index] = self._item({**row, **cell}, index, config, rows.root)
            except BadRow as bad:
                skips.add(str(index), bad.reason)
                broken.add(index % _ROTATION)
        chosen = _whole_questions(found, broken, skips, limit)
        require(chosen, rows.info.id, skips, "question")
        kept = [item for index, item in found.items() if index % _ROTATION in chosen]
        shared = {base: content_key(found[base].pictures[0]) for base in chosen}
        return [replace(item, cluster=shared[item.reference["base"]]) for item in kept], skips

    def _item(self, row: Row, index: int, config: str, root: Path | None) -> Item:
        question = field(row, "question", str)
        options = {letter: text for letter in "ABCDE" if (text := _text(row, letter))}
        if len(options) < 2:
            raise BadRow("fewer than two options")
        answer = _text(row, "answer")
        if answer not in options:
            raise BadRow("answer is not the letter of an option" if answer else "no answer")
        l2_category = _text(row, "l2-category") or _text(row, "L2-category")
        return Item(
            id=str(index),
            prompt=build_prompt(question, options, _text(row, "hint"), self.prompt, config),
            pictures=(shown(row, root),),
            reference={
                "base": index % _ROTATION,
                "question": question,
                "options": options,
                "answer": answer,
                "category": _text(row, "category") or "uncategorized",
                "l2_category": l2_category or "uncategorized",
            },
        )

    def right(self, item: Item, reply: str) -> float:
        """Whether the letter that the parser reads is the true one; the matcher is not asked."""
        letter = PARSERS[self.parser](reply, item.reference["options"])
        return float(letter == item.reference["answer"])

    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """CircularEval and vanilla accuracy; in the details also by category.

        A question of which a rotation has no reply is left out of both.
        """
        questions, unscored = self._asked(items, predictions)
        if self.matcher is not None:
            store = JsonlStore(folder / "matches.jsonl")
            questions = {base: self._matched(q, store) for base, q in questions.items()}
        circular, vanilla, categories, l2_categories = [], [], [], []
        for base, rotations in questions.items():
            hit = circular_hit(
                [one.item.reference["answer"] for one in rotations],
                [one.letter for one in rotations],
            )
            about = rotations[0].item.reference
            shared = (rotations[0].item.cluster, about["category"])
            circular.append(Unit(base, (float(hit),), *shared))
            vanilla.append(Unit(base, (float(rotations[0].right),), *shared))
            categories.append((about["category"], hit))
            l2_categories.append((about["l2_category"], hit))
        asked = [one for rotations in questions.values() for one in rotations]
        unparsed = [one.item.id for one in asked if one.letter is None or one.drawn]
        return Scored(
            metrics=[
                Metric("circular", "CircularEval", tuple(circular)),
                Metric("vanilla", "VanillaEval", tuple(vanilla)),
            ],
            unparsed=unparsed,
            unscored=unscored,
            scorer={"matcher": matcher_name(self.matcher)},
            details={
                "category": dict(sorted(shares(categories).items())),
                "l2_category": dict(sorted(shares(l2_categories).items())),
                "letters": dict(Counter(one.letter or "unparsed" for one in asked).most_common()),
                "unparsed_rate": len(unparsed) / max(len(asked), 1),
            },
            warnings=self._warnings(questions, len(unparsed), len(asked)),
        )

    def _asked(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction]
    ) -> tuple[dict[str, list[_Asked]], dict[str, str]]:
        """Questions of which all rotations have a reply, by base index, and the other replies."""
        parse, said = PARSERS[self.parser], {i.id: text for i, text in replies(items, predictions)}
        questions: dict[str, list[Item]] = {}
        for item in sorted(items, key=lambda item: int(item.id)):
            questions.setdefault(str(item.reference["base"]), []).append(item)
        asked: dict[str, list[_Asked]] = {}
        unscored: dict[str, str] = {}
        for base, rotations in questions.items():
            replied = [item for item in rotations if item.id in said]
            if len(replied) < len(rotations):
                reason = "another rotation of its question has no reply"
                unscored |= {item.id: reason for item in replied}
                continue
            asked[base] = [
                _Asked(item, said[item.id], parse(said[item.id], item.reference["options"]))
                for item in rotations
            ]
        return asked, unscored

    def _matched(self, rotations: list[_Asked], store: JsonlStore) -> list[_Asked]:
        """The same rotations with the matcher's letters where the rules gave none.

        A wrong letter settles CircularEval: after one, only the unrotated question, which the
        vanilla accuracy needs, is worth a call.
        """
        lost = any(one.letter is not None and not one.right for one in rotations)
        matched: list[_Asked] = []
        for number, one in enumerate(rotations):
            if one.letter is None and (number == 0 or not lost):
                letter, drawn = self._match(one, store)
                one = replace(one, letter=letter, drawn=drawn)
                lost = lost or not one.right
            matched.append(one)
        return matched

    def _match(self, one: _Asked, store: JsonlStore) -> tuple[str, bool]:
        """The matcher's letter, or a random one; kept in ``store`` for the next run."""
        known = {"matcher": matcher_name(self.matcher), "parser": self.parser, "reply": one.reply}
        row = store.get(one.item.id)
        if row is None or any(row.get(key) != value for key, value in known.items()):
            said = self._ask(one)
            options = one.item.reference["options"]
            letter = self._letter_of(said[-1], options)
            drawn = letter is None
            if letter is None:
                draw = random.Random(f"{_SEED}/{one.item.id}")
                letter = draw.choice([*options, REFUSED])
            row = {"id": one.item.id, **known, "said": said, "letter": letter, "drawn": drawn}
            store.append(row)
        return row["letter"], row["drawn"]

    def _ask(self, one: _Asked) -> list[str]:
        """What the matcher said: the last of its replies is the one to read."""
        assert self.matcher is not None
        about, said = one.item.reference, list[str]()
        while len(said) < _TRIES:
            reply = self.matcher(about["question"], about["options"], one.reply)
            # A greedy model says the same for ever.
            if said and reply == said[-1]:
                break
            said.append(reply)
            if self._letter_of(reply, about["options"]) is not None:
                break
        return said

    def _letter_of(self, said: str, options: Mapping[str, str]) -> str | None:
        return REFUSED if said.strip(" .") == REFUSED else PARSERS[self.parser](said, options)

    def _warnings(
        self, questions: Mapping[str, Sequence[_Asked]], unparsed: int, asked: int
    ) -> list[str]:
        warnings = []
        if self.matcher is None and unparsed > _MANY_UNPARSED * asked:
            warnings.append(
                f"{unparsed} of {asked} replies name no option that the rules can read, and count "
                "as wrong; a matcher (a text LLM) may read them"
            )
        short = sum(len(q) < len(q[0].item.reference["options"]) for q in questions.values())
        if short:
            warnings.append(
                f"{short} of {len(questions)} questions have fewer rotations than options: "
                "CircularEval is easier there"
            )
        return warnings


# ---- rows ----------------------------------------------------------------------------------------


def _require_config(source: DataSource, config: str) -> None:
    """Refuse tables that are all named after other configurations: MMBench_DEV_CN.tsv is cn."""
    root = None if source.root is None else source.root.expanduser()
    if root is None or not root.is_dir() or (root / config).is_dir():
        return
    tables = [file for file in sorted(root.iterdir()) if file.suffix in (".tsv", ".csv")]
    named = {
        file.name: found[1].lower()
        for file in tables
        if (found := re.search(r"_(en|cn|cc)(?![a-z])", file.stem, re.I))
    }
    if named and len(named) == len(tables) and config not in named.values():
        file, other = next(iter(named.items()))
        raise UserError(
            f"{root / file} is named after configuration {other!r}, and {config!r} is asked for, "
            f"whose instruction is in another language; choose --config mmbench={other}"
        )


def _whole_questions(
    found: Mapping[int, Item], broken: set[int], skips: SkipReport, limit: int | None
) -> set[int]:
    """Base indices to keep: no broken rotation, the unrotated row present, within the limit."""
    rotations: dict[int, list[int]] = {}
    for index in found:
        rotations.setdefault(index % _ROTATION, []).append(index)
    chosen, taken = set[int](), 0
    for base, indices in rotations.items():
        if base in broken or base not in found:
            reason = "another rotation of its question is unusable"
            if base not in broken:
                reason = "its question's first rotation is missing"
            for index in indices:
                skips.add(str(index), reason)
        elif limit is None or taken < limit:
            chosen.add(base)
            taken += len(indices)
    return chosen


def _text(row: Row, name: str) -> str:
    """A text cell, or a whole number's text; empty where it is missing, also written ``nan``."""
    value = as_text(row.get(name))
    if value is None or value == "nan" or (isinstance(value, float) and math.isnan(value)):
        return ""
    return field({name: value}, name, str)


def _pictures(rows: Sequence[Row]) -> dict[int, Any]:
    """Image cells by index, with those that point to another row replaced by that row's.

    Rows without a picture are left out, and rows that point to such rows.
    """
    cells: dict[int, Any] = {}
    for row in rows:
        if (cell := row.get("image")) is not None and cell != "":
            try:
                cells.setdefault(field(row, "index", int), cell)
            except BadRow:
                continue  # counted where the row itself is read
    pointers = {index: int(cell) for index, cell in cells.items() if _is_pointer(cell)}
    pictures = {index: cell for index, cell in cells.items() if index not in pointers}
    return pictures | {
        index: pictures[target] for index, target in pointers.items() if target in pictures
    }


def _is_pointer(cell: Any) -> bool:
    """A string of digits, the index of another row; long ones are pictures, others file names."""
    return isinstance(cell, str) and len(cell) <= 64 and cell.strip().isdecimal()
