"""Who makes the questions that a caption answers, and when a reply agrees with an answer.

A question maker is called with captions and gives a list of (question, answer) for each, all of
which a right picture must answer so. Where it knows kinds of questions that a model can do already,
it has a method ``old(captions, seeds)`` that gives questions without answers, to rehearse by.
``unparsed`` counts the replies of a model that were no question, ``failed`` those of each caption
of the last call. Where writing costs something ``keeps`` is true, and ``key`` says by what the
questions were written (``KeptQuestions``).

``MAKERS`` knows them by name, and packages of yours add theirs by an entry point of its group: what
it names is called with the backbone and the method's settings.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from unigame.errors import UserError
from unigame.methods.drawings.texts import QA
from unigame.methods.files import append_lines, lines_of_all
from unigame.registry import Registry
from unigame.system.say import warn

MAKERS = Registry(
    "unigame.question_makers",
    {
        "rules": "unigame.methods.drawings.questions:RuleQuestions",
        "phrases": "unigame.methods.drawings.phrases:PhraseQuestions",
        "world": "unigame.synthetic.from_captions:WorldQuestions",
        "model": "unigame.methods.drawings.written:ModelQuestions",
        "endpoint": "unigame.evaluation.scorers.written_openai:EndpointQuestions",
    },
)
GIVEN = "given"
"""In the place of a maker: those that stand beside the caption in its file."""


class QuestionMaker(Protocol):
    """See the module docstring."""

    def __call__(self, captions: Sequence[str]) -> Sequence[Sequence[QA]]:
        """Of each caption, the questions that a right picture answers so."""


class RuleQuestions:
    """The synthetic world's own rules where a caption is written in its words, else noun phrases.

    Args:
        backbone: not used.
        settings: likewise.
    """

    def __init__(self, backbone: Any = None, settings: Any = None) -> None:
        self.world = MAKERS.get("world")(backbone, settings)
        self.phrases = MAKERS.get("phrases")(backbone, settings)

    def __call__(self, captions: Sequence[str]) -> list[list[QA]]:
        """By the rules that fit each caption."""
        found = self.world(captions)
        general = self.phrases(captions)
        return [own or other for own, other in zip(found, general, strict=True)]

    def old(self, captions: Sequence[str], seeds: Sequence[int]) -> list[list[str]]:
        """Of the world's captions, a question of each kind; of others, those of the check."""
        found: list[list[str]] = self.world.old(captions, seeds)
        general = [[question for question, _ in asked] for asked in self.phrases(captions)]
        return [own or other for own, other in zip(found, general, strict=True)]


def held_out(asked: Sequence[QA]) -> tuple[list[QA], list[QA]]:
    """Which of a caption's questions verify a drawing, and which are left to be learned of it.

    What a drawing was verified by is answered right already: to train on it teaches nothing. Of
    questions with other answers than yes and no every second one is left, and all with yes or no
    verify. Where there are only those, every second of each answer is left, so that a model that
    says yes to everything is still found out.

    Args:
        asked: of one question, or one "yes" and one "no", nothing is left.
    """
    open_ones = [pair for pair in asked if pair[1].lower() not in ("yes", "no")]
    closed = [pair for pair in asked if pair not in open_ones]
    if open_ones and closed:
        left = open_ones[1::2] or open_ones
    elif open_ones:
        left = open_ones[1::2]
    else:
        left = [
            pair
            for answer in ("yes", "no")
            for pair in [own for own in closed if own[1].lower() == answer][1::2]
        ]
    return [pair for pair in asked if pair not in left], left


def build_maker(name: str, backbone: Any, settings: Any) -> QuestionMaker:
    """The maker of a setting.

    Raises:
        UserError: an unknown name, or a maker that cannot work.
    """
    maker: QuestionMaker = MAKERS.get(name)(backbone, settings)
    if not callable(maker):
        raise UserError(
            f"question_maker={name!r} gives {type(maker).__name__}, which cannot be called with "
            "captions; let its entry point name a class of question makers"
        )
    return maker


class KeptQuestions:
    """A maker whose questions are written once by each process, and kept in a file beside the run.

    So a resumed run asks the very same ones, no process pays for one twice, and a line can be
    mended by hand. Processes read each other's files only at their start: a caption that comes to
    two of them is asked about twice::

        <method>_questions.jsonl, of other processes <method>_questions_<rank>.jsonl:
        {"caption": .., "questions": [[.., ..]], "maker": .., "unparsed": ..}

    What another maker wrote (another model, endpoint or template) is not asked. A line without
    ``maker`` is anybody's.

    Attributes:
        counted: captions that were asked about in this run.

    Args:
        maker: writes them; a model, whose texts take time and may differ.
        folder: of the run.
        name: of the method, for the file.
        rank: this process's number; each writes a file of its own.
    """

    def __init__(self, maker: QuestionMaker, folder: str | Path, name: str, rank: int = 0) -> None:
        self.maker, self.name = maker, name
        suffix = "" if rank == 0 else f"_{rank}"
        self.file = Path(folder) / f"{name}_questions{suffix}.jsonl"
        self.known: dict[str, list[QA]] = {}
        self.counted: set[str] = set()
        self.failed: dict[str, int] = {}
        self.key = str(getattr(maker, "key", type(maker).__qualname__))
        self.read(folder)

    @property
    def unparsed(self) -> int:
        """Replies that were no question and answer, of the captions that were asked about."""
        return sum(self.failed[caption] for caption in self.counted)

    def read(self, folder: str | Path) -> None:
        """Take over what any process of a run in ``folder`` wrote; damaged lines are made again."""
        others = 0
        for line in lines_of_all(self.file, folder, f"{self.name}_questions*.jsonl"):
            try:
                row = json.loads(line)
                pairs = [(str(q), str(a)) for q, a in row["questions"]]
                caption, failed = str(row["caption"]), int(row.get("unparsed", 0))
                if row.get("maker", self.key) == self.key:
                    self.known.setdefault(caption, pairs)
                    self.failed.setdefault(caption, failed)
                else:
                    others += 1
            except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
                continue
        if others:
            warn(
                f"{self.name}: the questions of {others} captions in {folder} are of another "
                "model, endpoint or template, and are written anew"
            )

    AT_ONCE = 16
    """Captions asked about before their questions are in the file: no more than these are lost."""

    def __call__(self, captions: Sequence[str]) -> list[list[QA]]:
        """Known ones, and new ones for captions that are new."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.known]
        for start in range(0, len(new), self.AT_ONCE):
            self._write(new[start : start + self.AT_ONCE])
        # Of the file: so a resumed run counts what an unbroken one did.
        self.counted.update(captions)
        return [self.known[caption] for caption in captions]

    def _write(self, new: Sequence[str]) -> None:
        """Questions of new captions, into the file."""
        before = getattr(self.maker, "unparsed", 0)
        made = [[(q, a) for q, a in asked] for asked in self.maker(new)]
        failed = list(getattr(self.maker, "failed", ()))
        if len(failed) != len(new):  # a maker that does not count them caption by caption
            failed = [getattr(self.maker, "unparsed", 0) - before, *[0] * (len(new) - 1)]
        rows = [
            {"caption": caption, "questions": asked, "maker": self.key, "unparsed": number}
            for caption, asked, number in zip(new, made, failed, strict=True)
        ]
        append_lines(self.file, rows)
        self.known.update(zip(new, made, strict=True))
        self.failed.update(zip(new, failed, strict=True))


# ---- agreement ---------------------------------------------------------------------------------
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_LARGER = frozenset(
    "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty "
    "thirty forty fifty sixty seventy eighty ninety dozen dozens hundred hundreds thousand "
    "thousands".split()
)
_NEGATIONS = {"no", "not", "never", "neither", "nor", "nothing", "without", "0"}
_CHOICES = {"or", "either", "maybe", "perhaps", "possibly"}
_NOT = re.compile(
    r"\b(?:cannot|\w+n't|(?:is|are|was|were|do|does|did|has|have|ca|wo|could|would)nt)\b"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_MARKS = frozenset(string.punctuation) - {"-"}


def plain_words(text: str) -> list[str]:
    """Words of a reply in small letters, without articles and marks, numbers as digits.

    Marks are those of any script; a point between digits stays. "isn't" is "not".
    """
    words = [_WORDS.get(word, word) for word in _unmarked(text).split()]
    return [word for word in words if word not in ("a", "an", "the")]


def _unmarked(text: str) -> str:
    """Small letters, spaces for marks."""
    text = _THOUSANDS.sub("", _NOT.sub(" not ", text.lower().replace("\u2019", "'")))
    return "".join(
        " " if _is_mark(letter) and not _in_number(text, place) else letter
        for place, letter in enumerate(text)
    )


def _is_mark(letter: str) -> bool:
    return letter in _MARKS or (letter != "-" and unicodedata.category(letter).startswith("P"))


def _in_number(text: str, place: int) -> bool:
    """Whether the letter there is the point of a number such as 3.5."""
    around = text[place - 1 : place] + text[place + 1 : place + 2]
    return text[place] == "." and len(around) == 2 and around.isdigit()


def agrees(reply: str, answer: str) -> bool:
    """Whether a reply gives the answer.

    To yes and no its first word counts. Another answer must stand in the reply, word for word and
    in one piece, and the reply may have four words more: "it is a red ball" gives "red ball", and
    "it is not a red ball" does not. Nor does a reply that leaves a choice, "red or blue", or names
    another number beside an answer that is one. Numbers up to ten are alike in words and in digits.
    An answer that is an article alone, such as the letter of a choice, is the whole reply.
    """
    said, wanted = plain_words(reply), plain_words(answer)
    if not wanted:
        letters = [_unmarked(text).split() for text in (reply, answer)]
        return bool(letters[1]) and letters[0] == letters[1]
    if not said:
        return False
    if wanted in (["yes"], ["no"]):
        return said[0] == wanted[0]
    if _doubts(said) - _doubts(wanted) or len(said) > len(wanted) + 4:
        return False
    if len(wanted) == 1 and wanted[0].isdigit() and _numbers(said) != {wanted[0]}:
        return False
    starts = range(len(said) - len(wanted) + 1)
    return any(said[start : start + len(wanted)] == wanted for start in starts)


def _doubts(words: Sequence[str]) -> set[str]:
    """Those that deny what stands beside them, or leave a choice."""
    return (_NEGATIONS | _CHOICES).intersection(words)


def _numbers(words: Sequence[str]) -> set[str]:
    return {word for word in words if word.isdigit() or word in _LARGER}
