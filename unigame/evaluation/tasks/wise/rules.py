"""WISE's rules without its data: categories, weights, WiScore and the reading of a judge's reply.

Sources: ``WISE_legacy`` of PKU-YuanGroup/WISE (commit eb51174), lmms-eval 0.7.3, and TorchUMM's
port (commit 083395e). A judge gives three whole scores from 0 to 2; how they may be spelled
differs:

| variant | differs in |
|---|---|
| ``lmms_eval``, ``official`` | the same reading; they differ in what an incomplete set is worth |
| ``torchumm`` | takes a full-width colon; does not take three bare lines |
| ``lenient`` | ours: also ``**Realism:** 1``, ``"realism": 1``, ``Realism = 1``; not 1.5 or 10 |

TorchUMM writes 9.9 for a score that it could not read and averages it, which lifts a model that the
judge never rated to a WiScore of 4.95. Nothing here averages such a stand-in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from unigame.reports.metrics import Metric, Unit

SCORES: Final = ("consistency", "realism", "aesthetic_quality")
HIGHEST_SCORE: Final = 2

CATEGORY_IDS: Final = {
    "culture": range(1, 401),
    "time": range(401, 568),
    "space": range(568, 701),
    "biology": range(701, 801),
    "physics": range(801, 901),
    "chemistry": range(901, 1001),
}
WEIGHTS: Final = {
    "culture": 0.4,
    "time": 0.167,
    "space": 0.133,
    "biology": 0.1,
    "physics": 0.1,
    "chemistry": 0.1,
}
"""Shares of the 1,000 prompts: over a full set the overall score is the plain mean."""

UNKNOWN_CATEGORY: Final = "unknown"
_NAMES = r"(consistency|realism|aesthetic quality)"
_OFFICIAL = re.compile(_NAMES + r"\*{0,2}\s*:?\s*(\d)", re.IGNORECASE)
_TORCHUMM = re.compile(_NAMES + r"\*{0,2}\s*[:：]?\s*(\d)", re.IGNORECASE)
_LENIENT = re.compile(
    r"(consistency|realism|aesthetic[ _]quality)[\s*_`\"':：=]*([0-2])(?![\d.,]*\d)", re.IGNORECASE
)
_VERIFIED = re.compile(r"score\*{0,2}\s*:?\s*([01])\b", re.IGNORECASE)


def category(prompt_id: int) -> str:
    """The category of a prompt of the legacy set; ``"unknown"`` outside 1 to 1,000."""
    return next((c for c, ids in CATEGORY_IDS.items() if prompt_id in ids), UNKNOWN_CATEGORY)


def wiscore(consistency: float, realism: float, aesthetic_quality: float) -> float:
    """WiScore of one picture, 0 to 1, from three scores of 0 to 2."""
    return (0.7 * consistency + 0.2 * realism + 0.1 * aesthetic_quality) / 2


# ---- reading a reply -----------------------------------------------------------------------------


def read_official(reply: str) -> dict[str, float]:
    """The scores found in a reply, as the official script and lmms-eval read them.

    A score is a name, perhaps a colon *after* closing bold marks, and one digit (1.5 reads as 1);
    the last mention of a name counts. If no name is found, three lines that hold nothing but 0, 1
    or 2 are taken in order.
    """
    return _named(_OFFICIAL, reply) or _bare_lines(reply)


def read_torchumm(reply: str) -> dict[str, float]:
    """The scores found in a reply by TorchUMM's rule; those not found are simply absent."""
    return _named(_TORCHUMM, reply)


def read_lenient(reply: str) -> dict[str, float]:
    """The scores found in a reply that need not follow the format to the letter.

    Unlike the other rules it takes no digit out of a longer number: 1.5 and 10 are no scores.
    """
    return _named(_LENIENT, reply) or _bare_lines(reply)


READERS: Final[Mapping[str, Callable[[str], dict[str, float]]]] = {
    "lmms_eval": read_official,
    "official": read_official,
    "torchumm": read_torchumm,
    "lenient": read_lenient,
}


def complete(scores: Mapping[str, float]) -> bool:
    """Whether all three scores were found: the references ask again otherwise."""
    return all(name in scores for name in SCORES)


def usable(scores: Mapping[str, float]) -> bool:
    """Whether the scores may be averaged: all three there, each from 0 to 2.

    The references take any digit, so that a judge who answers on a scale of its own ("Realism: 8")
    gives a WiScore above 1. Here such a reply counts as unreadable.
    """
    return complete(scores) and all(0 <= scores[name] <= HIGHEST_SCORE for name in SCORES)


def read_verified(reply: str) -> dict[str, float]:
    """The one score, 0 or 1, that the judge of WISE_Verified gives; empty if there is none.

    Here the *first* mention counts, and the digit must end there (``Score: 10`` is none). Without
    the word, a single line that holds nothing but 0 or 1 is taken.
    """
    if found := _VERIFIED.search(reply):
        return {"score": float(found.group(1))}
    bare = _lines_of(reply, ("0", "1"))
    return {"score": bare[0]} if len(bare) == 1 else {}


def _named(pattern: re.Pattern[str], reply: str) -> dict[str, float]:
    return {name.lower().replace(" ", "_"): float(digit) for name, digit in pattern.findall(reply)}


def _bare_lines(reply: str) -> dict[str, float]:
    found = _lines_of(reply, ("0", "1", "2"))
    if len(found) < len(SCORES):
        return {}
    return dict(zip(SCORES, found[: len(SCORES)], strict=True))


def _lines_of(reply: str, digits: Sequence[str]) -> list[float]:
    lines = [line.strip() for line in reply.split("\n")]
    return [float(line) for line in lines if line in digits]


# ---- the overall score ---------------------------------------------------------------------------


def overall_metric(units: Sequence[Unit]) -> Metric:
    """The headline: mean WiScore of each category, weighted; weights renormalised if some lack."""
    return Metric(
        "wiscore", "WiScore", tuple(units), per_group=True, weights=dict(WEIGHTS), scale=1.0
    )
