"""MMBench: every question is asked once per option, with the options shifted (arXiv 2307.06281).

CircularEval counts a question only if all its rotations are answered right, so that a model which
likes one letter scores near 0. Rotation ``k`` of the question with index ``i`` has the index
``i + k * 1,000,000``. Prompts and rules are those of lmms-eval 0.7.3, of VLMEvalKit as TorchUMM
083395e has it, and of BAGEL, by variant.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unigame.errors import UserError
from unigame.evaluation.base import Benchmark, DataSource, Item, Loaded, Prediction, Scored
from unigame.evaluation.scorers.matcher import HFMatcher, Matcher, matcher_name, resolve_matcher
from unigame.evaluation.source import fingerprint, read_rows
from unigame.evaluation.store import JsonlStore
from unigame.evaluation.tasks.mmbench.rows import CONFIGS, MMBenchRow, read_questions
from unigame.evaluation.tasks.mmbench.rules import PARSERS, REFUSED
from unigame.reports.metrics import Metric, Unit

_TRIES = 3
_SEED = 2680
_MANY_UNPARSED = 0.05

_LETTER = "Answer with the option's letter from the given choices directly."
# The instruction of each variant in the Chinese sets.
_LETTER_CN = {
    "lmms_eval": "请直接使用所提供的选项字母作为答案回答。",
    "bagel": "请直接回答选项字母。",
}


def build_prompt(
    question: str, options: Mapping[str, str], hint: str, variant: str, config: str = "en"
) -> str:
    """What the model is asked.

    Args:
        question: as in the data.
        options: texts by letter, without the absent ones.
        hint: text to go before the question; empty: none. lmms-eval drops it in ``cc``.
        variant: ``lmms_eval``, ``vlmevalkit``, ``bagel``, or ``bare`` (the question alone).
        config: ``en``, ``cn`` or ``cc``; the last two have their instruction in Chinese, but for
            ``vlmevalkit``.
    """
    if variant == "bare":
        return question
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    if variant == "vlmevalkit":
        head = f"Hint: {hint}\n" if hint else ""
        return (
            f"{head}Question: {question}\nOptions:\n{listed}\n"
            "Please select the correct answer from the options above. \n"
        )
    instruction = _LETTER if config == "en" else _LETTER_CN[variant]
    if variant == "bagel":
        head = f"{hint}\n" if hint else ""
        return f"{head}{question}\n{listed}\n{instruction}"
    head = f"{hint} " if hint and config != "cc" else ""
    listed = f"There are several options:\n{listed}".rstrip("\n")
    return f"{head}{question} {listed}\n\n{instruction}"


def circular_hit(answers: Sequence[str], letters: Sequence[str | None]) -> bool:
    """Whether all rotations of one question are right; a reply that named nothing is wrong."""
    return all(letter == answer for answer, letter in zip(answers, letters, strict=True))


def hit_rates(hits: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Share of hits by category, 0 to 1.

    Args:
        hits: category and whether it was a hit, of every question.
    """
    groups: dict[str, list[bool]] = {}
    for category, hit in hits:
        groups.setdefault(category, []).append(hit)
    return {category: sum(found) / len(found) for category, found in sorted(groups.items())}


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
        """See that the matcher is there, before the model is asked anything.

        Raises:
            UserError: it is not, or is of another kind.
        """
        if isinstance(self.matcher, HFMatcher):
            self.matcher.check()

    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Read the questions with all their rotations; ``limit`` is rounded up to whole questions.

        Parquet as in ``lmms-lab/MMBench`` (configurations ``en``, ``cn``, ``cc``), or a tsv with
        pictures in base64. A question with an unusable rotation is left out as a whole.

        Raises:
            UserError: no data, another layout, or a split without answers.
        """
        config = source.config or "en"
        if config not in CONFIGS:
            raise UserError(
                f"MMBench has no configuration {config!r}; choose from {', '.join(CONFIGS)}"
            )
        rows = read_rows(
            source,
            hub_id="lmms-lab/MMBench",
            config=config,
            split="test" if config == "cc" else "dev",
            required=("index", "question", "A", "B", "image"),
        )
        found, skips = read_questions(rows, limit)
        items = [self._item(row, config) for row in found]
        return Loaded(items, replace(rows.info, fingerprint=fingerprint(items)), skips)

    def _item(self, row: MMBenchRow, config: str) -> Item:
        return Item(
            id=str(row.index),
            prompt=build_prompt(row.question, row.options, row.hint, self.prompt, config),
            pictures=(row.picture,),
            reference={
                "base": row.base,
                "question": row.question,
                "options": dict(row.options),
                "answer": row.answer,
                "category": row.category,
                "l2_category": row.l2_category,
            },
            cluster=str(row.base),
        )

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
            circular.append(Unit(base, (float(hit),), group=about["category"]))
            vanilla.append(Unit(base, (float(rotations[0].right),), group=about["category"]))
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
                "category": hit_rates(categories),
                "l2_category": hit_rates(l2_categories),
                "letters": dict(Counter(one.letter or "unparsed" for one in asked).most_common()),
                "unparsed_rate": len(unparsed) / max(len(asked), 1),
            },
            warnings=self._warnings(questions, len(unparsed), len(asked)),
        )

    def _asked(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction]
    ) -> tuple[dict[str, list[_Asked]], dict[str, str]]:
        """Questions of which all rotations have a reply, by base index, and the other replies."""
        parse = PARSERS[self.parser]
        questions: dict[str, list[Item]] = {}
        for item in sorted(items, key=lambda item: int(item.id)):
            questions.setdefault(item.cluster, []).append(item)
        asked: dict[str, list[_Asked]] = {}
        unscored: dict[str, str] = {}
        for base, rotations in questions.items():
            replied = [predictions.get(item.id) for item in rotations]
            texts = [said.text for said in replied if said is not None and not said.error]
            if len(texts) == len(rotations):
                asked[base] = [
                    _Asked(item, text, parse(text, item.reference["options"]))
                    for item, text in zip(rotations, texts, strict=True)
                ]
                continue
            for said in replied:
                if said is not None and not said.error:
                    unscored[said.id] = "another rotation of its question has no reply"
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
