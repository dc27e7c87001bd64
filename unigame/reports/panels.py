"""Which logged figures stand beside each other in a plot: the one list for pictures and pages.

The input is the ``log_history`` of a transformers Trainer: a list of dicts with ``step`` and
whatever was logged then. A candidate differs from its original by the redrawing and by C. Wherever
the attack has a line, the same pictures redrawn without C have one beside it: the gap between the
two is C's doing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from unigame.reports import style


class Line(NamedTuple):
    """One logged key, drawn with a label and a colour."""

    key: str
    label: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """One small plot: its title (with the unit), its lines, and whether it shows shares of one."""

    title: str
    lines: tuple[Line, ...]
    share: bool = False


LOSS = Panel(
    "Loss that U learns, with the end mark",
    (Line("clean_ce", "clean", style.CLEAN), Line("hard_ce", "hard (buffer)", style.HARD)),
)
DRAWN = Panel(
    "Loss of what is drawn",
    (
        Line("generation_loss", "from captions", style.CLEAN),
        Line("reconstruction_loss", "from what is read", style.DRAWN),
    ),
)
CROSS_ENTROPY = Panel(
    "Cross-entropy of the answer's own tokens",
    (
        Line("clean_answer_ce", "clean", style.CLEAN),
        Line("redrawn_ce", "redrawn", style.DRAWN),
        Line("adversarial_ce", "attacked", style.ADVERSARIAL),
    ),
)
LOST = Panel(
    "Right answers that are lost",
    (
        Line("redrawn_success_rate", "redrawn", style.DRAWN),
        Line("attack_success_rate", "attacked", style.ADVERSARIAL),
    ),
    share=True,
)
CODES = Panel(
    "Image codes that are other ones",
    (
        Line("redrawn_codes_changed", "redrawn", style.DRAWN),
        Line("codes_changed", "attacked", style.ADVERSARIAL),
        Line("attack_codes_changed", "by C alone", style.WRONG),
    ),
    share=True,
)
SIMILARITY = Panel(
    "Similarity to the original",
    (
        Line("redrawn_similarity", "redrawn", style.DRAWN),
        Line("similarity", "attacked", style.ADVERSARIAL),
    ),
    share=True,
)
SIZE = Panel(
    "Size of the perturbation",
    (
        Line("eps", "eps", style.ADVERSARIAL),
        Line("delta_relative", "relative to the states", style.DRAWN),
    ),
)
ACCEPTED = Panel(
    "Candidates kept as hard samples",
    (Line("acceptance_rate", "accepted", style.HARD),),
    share=True,
)
BUFFER = Panel("Hard samples in the buffer", (Line("buffer_size", "items", style.HARD),))


def _of_drawings(method: str) -> tuple[Panel, ...]:
    """What a method of verified drawings logs of its rounds."""

    def line(figure: str, label: str, colour: str) -> Line:
        return Line(f"{method}_{figure}", label, colour)

    return (
        Panel(
            f"{method}: of all drawings",
            (
                line("kept", "confirmed by U", style.CLEAN),
                line("true", "right, by the reader", style.RIGHT),
                line("agreement", "questions answered alike", style.DRAWN),
            ),
            share=True,
        ),
        Panel(
            f"{method}: is the verifier right?",
            (
                line("precision", "precision", style.CLEAN),
                line("recall", "recall", style.DRAWN),
                line("false_confirmed", "wrong ones confirmed", style.WRONG),
            ),
            share=True,
        ),
        Panel(
            f"{method}: how different drawings are",
            (
                line("variety", "two of a caption", style.CLEAN),
                line("round_codes_used", "codebook used", style.HARD),
            ),
            share=True,
        ),
    )


VERIFIED = _of_drawings("verify")
IMAGINED = (
    *_of_drawings("imagine"),
    Panel(
        "imagine: what U answers",
        (
            Line("imagine_read_right", "of the drawings, right", style.HARD),
            Line("imagine_retained", "of old answers, kept", style.CLEAN),
            Line("imagine_cut", "old replies left out", style.WRONG),
        ),
        share=True,
    ),
)
SECONDS = Panel(
    "Seconds per phase of a step",
    (
        Line("seconds_understand", "understand", style.CLEAN),
        Line("seconds_challenge", "challenge", style.ADVERSARIAL),
        Line("seconds_mine", "mine", style.HARD),
    ),
)
PANELS = (
    *(LOSS, DRAWN, CROSS_ENTROPY, LOST, CODES, SIMILARITY, SIZE, ACCEPTED, BUFFER),
    *(*VERIFIED, *IMAGINED, SECONDS),
)

Series = list[tuple[Line, list[float], list[float]]]


def series(panel: Panel, log_history: Sequence[Mapping[str, Any]]) -> Series:
    """The lines of a panel that were logged at all, with their steps and finite values."""
    found: Series = []
    for line in panel.lines:
        points = [
            (float(entry["step"]), float(entry[line.key]))
            for entry in log_history
            if "step" in entry and is_finite(entry.get(line.key))
        ]
        if points:
            steps, values = zip(*points, strict=True)
            found.append((line, list(steps), list(values)))
    return found


def is_finite(value: object) -> bool:
    """Whether a logged value is a number that can be drawn and averaged."""
    return isinstance(value, int | float) and math.isfinite(value)
