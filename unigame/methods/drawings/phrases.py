"""Questions from any caption by rules: is there each thing that its noun phrases name?

    "a red ball on two wooden boxes"  ->  is there a red ball?          yes
                                          are there two wooden boxes?   yes
                                          is there a wooden ball?       no
                                          are there two red boxes?      no

Phrases end at commas, prepositions, conjunctions and verbs: a list of words, no parser. It is
English, and misses much; what it does find is mostly right. After "no", "without" or "not" nothing
is taken from the rest of the sentence: what is not there is not asked for. The questions with "no"
exchange what two phrases say of their nouns, so that a model that says yes to everything confirms
nothing where a caption names two described things.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from unigame.methods.drawings.texts import QA

_ENDS = frozenset(
    "and or with without on onto in into inside at of to by near under over above below behind "
    "beside besides between from next across around along against off through during after before "
    "for as like than while that which who where when is are was were be being been has have had "
    "there it its their his her this these those both each other one's front top side middle "
    "very some any no not up down out together".split()
)
_STARTS = frozenset("a an the".split())
_DENIALS = frozenset("no not none never nor neither without nothing nobody cannot".split())
_MANY = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PICTURES = frozenset(
    "photo photograph picture image drawing painting illustration rendering sketch scene view "
    "shot close closeup background foreground left right".split()
)
_NOUNS_IN_ING = frozenset(
    "building ceiling clothing earring king morning evening painting ring sibling spring string "
    "wedding wing swing thing fencing awning railing lightning".split()
)


def noun_phrases(caption: str) -> list[str]:
    """Things that a caption names, without articles, in order, each once.

    A phrase has five words at most; one that only names the picture itself is no thing.
    """
    found: dict[str, None] = {}
    for sentence in re.split(r"[.;!?]", caption.lower().replace("\u2019", "'")):
        # Marks and dashes that stand alone end a phrase; those inside a word belong to it.
        for piece in re.split(r"[^\w\s'-]|(?<!\w)-+|-+(?!\w)", _until_denied(sentence)):
            phrase: list[str] = []
            for word in [*piece.split(), "and"]:
                if word in _ENDS or word in _STARTS or _is_verb(word):
                    if phrase and phrase[-1] not in (*_PICTURES, *_MANY) and len(phrase) < 6:
                        found[" ".join(phrase)] = None
                    phrase = []
                else:
                    phrase.append(word)
    return list(found)


def _until_denied(sentence: str) -> str:
    """What stands before the first word that denies something."""
    for word in re.finditer(r"[\w'-]+", sentence):
        if word[0] in _DENIALS or word[0].endswith("n't"):
            return sentence[: word.start()]
    return sentence


def _is_verb(word: str) -> bool:
    return word.endswith("ing") and word not in _NOUNS_IN_ING and len(word) > 4


def existence(phrase: str) -> str:
    """Whether it is there: ``is there a red ball?``, ``are there two boxes?``."""
    first, last = phrase.split()[0], phrase.split()[-1]
    if first in _MANY or (last.endswith("s") and not last.endswith(("ss", "us", "is"))):
        return f"are there {phrase}?"
    return f"is there {'an' if phrase[0] in 'aeiou' else 'a'} {phrase}?"


def swapped(phrases: Sequence[str]) -> list[str]:
    """What is not there: the described nouns of two phrases with each other's description.

    What may be there is not denied: a "large wooden bowl" is a wooden bowl, and a "ball" that is
    not described may be a red one.
    """
    described = [phrase.split() for phrase in phrases if len(phrase.split()) > 1]
    known = [(_singular(phrase.split()[-1]), _described(phrase.split())) for phrase in phrases]
    found = []
    for first, second in zip(described, described[1:], strict=False):
        for one, other in ((first, second), (second, first)):
            # A number stays with its noun: "two red boxes", not "red boxes" of which there are 2.
            count = other[:1] if other[0] in _MANY else []
            words = [word for word in one[:-1] if word not in _MANY]
            noun, asked = _singular(other[-1]), set(words)
            may_be = any(
                noun == name and (asked <= description or description <= asked)
                for name, description in known
            )
            if words and not may_be and _singular(one[-1]) != noun:
                found.append(" ".join([*count, *words, other[-1]]))
    return list(dict.fromkeys(found))


def _described(words: Sequence[str]) -> set[str]:
    """What a phrase says of its noun, without its number."""
    return {word for word in words[:-1] if word not in _MANY}


def _singular(noun: str) -> str:
    """Of a noun, roughly: enough to see that "boxes" and "box" are one thing."""
    if noun.endswith(("ss", "us", "is")):
        return noun
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    if noun.endswith(("ses", "xes", "zes", "ches", "shes")):
        return noun[:-2]
    return noun.removesuffix("s")


class PhraseQuestions:
    """Yes/no questions about each noun phrase; see the module docstring."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, captions: Sequence[str]) -> list[list[QA]]:
        """Questions with answers of each caption; none where it names no thing."""
        made = []
        for caption in captions:
            phrases = noun_phrases(caption)
            made.append(
                [(existence(phrase), "yes") for phrase in phrases]
                + [(existence(phrase), "no") for phrase in swapped(phrases)]
            )
        return made
