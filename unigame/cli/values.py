"""Checks of single values on the command line, for argparse's ``type=``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

MOST = 10_000


def number(text: str, kind: Callable[[str], float], what: str) -> float:
    """``text`` as a number; the message says what it is not."""
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None


def positive_int(text: str) -> int:
    """A whole number from 1 up."""
    value = int(number(text, int, "a whole number"))
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small, give at least 1")
    return value


def few(text: str) -> int:
    """A whole number from 1 to some thousands, of what is kept at once."""
    value = positive_int(text)
    if value > MOST:
        raise argparse.ArgumentTypeError(f"{value} is too many, give at most {MOST}")
    return value


def names(text: str) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in text.split(",")]


def seed(text: str) -> int:
    """A seed of 32 bits."""
    value = int(number(text, int, "a whole number"))
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{value} is not a seed, give one from 0 to 2**32 - 1")
    return value


def temperature(text: str) -> float:
    """A temperature of sampling; 0 is greedy."""
    value = number(text, float, "a number")
    if not (value == 0 or 1e-3 <= value <= 1e3):
        raise argparse.ArgumentTypeError(
            f"{text} is not a temperature, give 0 (greedy), or 0.001 to 1000"
        )
    return value


def guidance(text: str) -> float:
    """A scale of classifier-free guidance; 1 is none."""
    value = number(text, float, "a number")
    if not 1 <= value <= 1e3:
        wrong = "too large, give at most 1000" if value > 1e3 else "too small, 1 means no guidance"
        raise argparse.ArgumentTypeError(f"{text} is {wrong}")
    return value


def text(words: str) -> str:
    """What a model can read: bytes that are not UTF-8 come as halves of surrogate pairs."""
    try:
        words.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{words!r} is not valid text (UTF-8)") from None
    return words
