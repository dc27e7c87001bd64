"""MMMU's prompts, and what a reply says: the reference's rules, in the reference's order.

Rules of ``mmmu/utils/eval_utils.py`` (MMMU-Benchmark/MMMU bb0b95a, called ``official``), of
lmms-eval 0.7.3, and of BAGEL's own runner. Where a rule surprises, the comment says so: scores are
only comparable if the surprises are kept. ``text`` is ours, for models that know no letters.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unigame.evaluation.items import shares
from unigame.evaluation.tasks.vqav2.rules import INSTRUCTION

MULTIPLE_CHOICE, OPEN = "multiple-choice", "open"

DOMAINS: dict[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
SUBJECTS = tuple(sorted(subject for subjects in DOMAINS.values() for subject in subjects))
"""Also the configurations of ``MMMU/MMMU``."""

_LETTER = "Answer with the option's letter from the given choices directly."
_SEED = 42
_LONG_REPLY = 5
"""Replies of more words than this are searched for the text of an option."""


@dataclass(frozen=True)
class Choice:
    """What a reply chose.

    Attributes:
        letter: of an option; under ``bagel`` and ``text`` the whole reply where nothing in it was
            recognised.
        random: drawn at random because no rule could read the reply.
        parsed: a rule read the reply. False: drawn, a default, or the reply as it stands.
    """

    letter: str
    random: bool = False
    parsed: bool = True


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Options by letter, A first. At most 26."""
    return dict(zip(string.ascii_uppercase, options, strict=False))


def build_prompt(question: str, options: Sequence[str], question_type: str, variant: str) -> str:
    """What the model is asked.

    ``lmms_eval`` puts an empty line before the instruction; ``torchumm`` (TorchUMM and BAGEL) does
    not, and strips question and options; ``bare`` is the question alone. ``<image 1>`` marks stay.
    """
    if variant == "bare":
        return question
    choices = question_type == MULTIPLE_CHOICE
    instruction = _LETTER if choices else INSTRUCTION
    listed = lettered(options if choices else ())
    if variant == "torchumm":
        lines = [f"{letter}. {text.strip()}" for letter, text in listed.items()]
        return "\n".join([question.strip(), *lines, instruction])
    lines = [f"{letter}. {text}" for letter, text in listed.items()]
    return "\n".join([question, *lines]) + f"\n\n{instruction}"


def parse_choice(reply: str, options: Sequence[str], variant: str, id: str) -> Choice:
    """The option that a reply chose.

    Args:
        reply: what the model said.
        options: their texts, in order.
        variant: ``official``, ``lmms_eval``, ``bagel`` or ``text``.
        id: of the question: it seeds the random letter, so that the letter depends neither on the
            order of the questions nor on which others are asked. (The reference draws all letters
            from one global generator, seeded at import.)
    """
    choices = lettered(options)
    if variant == "bagel":
        return _bagel(reply, choices)
    if variant == "text":
        return _text(reply, choices)
    letter = _said_letter(reply, choices, _TESTS[variant])
    if letter is not None:
        return Choice(letter)
    return Choice(random.Random(f"{_SEED}/{id}").choice(list(choices)), random=True, parsed=False)


def _said_letter(
    reply: str, choices: Mapping[str, str], tests: Sequence[tuple[str, str]]
) -> str | None:
    """The first test that any letter passes decides; of several letters, the last one said."""
    for mark in ",.!?;:'":
        reply = reply.strip(mark)  # each mark once, in this order: "A,." keeps its comma
    reply = f" {reply} "
    for form, position in tests:
        found = [letter for letter in choices if form.format(letter) in reply]
        if found:
            # Where the form that was found is not the one looked up (lmms-eval), all positions may
            # be -1; the first letter then wins.
            return max(found, key=lambda letter: reply.rfind(position.format(letter)))
    if len(reply.split()) > _LONG_REPLY:
        reply = reply.lower()
        found = [letter for letter, text in choices.items() if text.lower() in reply]
        if found:
            return max(found, key=lambda letter: reply.rfind(choices[letter].lower()))
    return None


# Form of the letter that is looked for, and form whose last place decides between several.
# lmms-eval looks for "A " with no blank before it, so any word that ends in a capital A counts.
_TESTS = {
    "official": (("({})", "({})"), (" {} ", " {} ")),
    "lmms_eval": (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")),
}


def _bagel(reply: str, choices: Mapping[str, str]) -> Choice:
    """First character if it is an option's letter, else the first option whose text is contained.

    The text is compared with its case. An empty reply counts as C.
    """
    reply = reply.strip()
    if not reply:
        return Choice("C", parsed=False)
    if reply[0] in choices:
        return Choice(reply[0])
    if len(reply) > 1:
        for letter, text in choices.items():
            if text in reply:
                return Choice(letter)
    return Choice(reply, parsed=False)


def _text(reply: str, choices: Mapping[str, str]) -> Choice:
    """The reply is an option's letter, or contains the words of exactly one option, in any case."""
    if (letter := reply.strip(" .()")) in choices:
        return Choice(letter)
    found = [
        letter
        for letter, text in choices.items()
        if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", reply, re.IGNORECASE)
    ]
    return Choice(found[0]) if len(found) == 1 else Choice(reply, parsed=False)


def choice_correct(gold: str | Sequence[str], letter: str) -> bool:
    """Whether a letter is the answer, or one of the answers."""
    return letter == gold if isinstance(gold, str) else letter in gold


# ---- open questions ------------------------------------------------------------------------------

_INDICATORS = (
    "could be ",
    "so ",
    "is ",
    "thus ",
    "therefore ",
    "final ",
    "answer ",
    "result ",
)
_TRIVIAL = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234,567
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.2e-3
    # 12, 1.5, .5: not the mantissa of the above, not digits before a comma. So the exponent of
    # "5e3" and the last three digits of "5,012" count as numbers of their own.
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def parse_open(reply: str) -> list[float | str]:
    """Everything in a reply that may be its answer: numbers ascending, then strings.

    These are the tails after words such as "is " or "answer " in each line, or else the whole
    reply, and all numbers in them; each normalised by :func:`normalise`.
    """
    tails = _tails(reply)
    numbers = [found for tail in tails for form in _NUMBERS for found in form.findall(tail)]
    values = {value for text in [*tails, *numbers] for value in normalise(text)}
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def _tails(reply: str) -> list[str]:
    # Lower-casing comes before the reference splits at ". " and a capital letter, which therefore
    # never happens: only new lines split.
    reply = reply.strip().strip(".").lower()
    lines, tails = reply.split("\n"), []
    for number, line in enumerate(lines, start=1):
        # The last line may be an equation.
        indicators = (*_INDICATORS, "=") if number == len(lines) else _INDICATORS
        shortest = ""
        for indicator in indicators:
            if indicator in line:
                tail = line.rsplit(indicator, 1)[1].strip()
                # An empty tail never stays: the reference takes it for "none yet".
                if not shortest or len(tail) < len(shortest):
                    shortest = tail
        if shortest and shortest not in _TRIVIAL:
            tails.append(shortest)
    return tails or [reply]


def normalise(text: str) -> list[float | str]:
    """A number rounded to two places, or the text in lower case.

    A single character becomes two strings, with a blank after and before it, so that it is not
    found inside words.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_correct(gold: str | Sequence[str], candidates: Sequence[float | str]) -> bool:
    """Whether any candidate of :func:`parse_open` matches an answer.

    A text answer only has to be contained in a candidate: "category" is right where "cat" is.
    """
    golds = [gold] if isinstance(gold, str) else gold
    answers = [value for each in golds for value in normalise(each)]
    return any(_matches(candidate, answers) for candidate in candidates)


def _matches(candidate: float | str, answers: Sequence[float | str]) -> bool:
    if isinstance(candidate, str):
        return any(isinstance(answer, str) and answer in candidate for answer in answers)
    return candidate in answers


# ---- shares of right answers ---------------------------------------------------------------------


def summarise(outcomes: Iterable[tuple[str, bool]]) -> dict[str, Any]:
    """Shares of right answers, 0 to 1 and rounded to 5 places as lmms-eval prints them.

    Args:
        outcomes: subject and whether the answer was right, of every question.

    Returns:
        ``overall_acc`` (the mean over all questions) and, each with ``acc`` and ``num``,
        ``domains`` and ``subjects``.
    """
    known = list(outcomes)
    domain = {subject: name for name, subjects in DOMAINS.items() for subject in subjects}
    overall = counted_shares(("all", right) for _, right in known)
    return {
        "overall_acc": overall["all"]["acc"] if known else 0.0,
        "domains": counted_shares(
            (domain.get(subject, "other"), right) for subject, right in known
        ),
        "subjects": counted_shares(known),
    }


def counted_shares(
    outcomes: Iterable[tuple[str, bool]],
) -> dict[str, dict[str, float | int]]:
    """``acc``, rounded to 5 places, and ``num`` of each group."""
    known = list(outcomes)
    counts = Counter(group for group, _ in known)
    return {
        group: {"acc": round(share, 5), "num": counts[group]}
        for group, share in shares(known).items()
    }
