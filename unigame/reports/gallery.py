"""The gallery: what the adversary drew, and what the model said to it.

Each card is one question: the clean picture, the model's own redrawing of it without any
perturbation (eps = 0), the adversarial redrawing, and the model's answer to each, green where it
is the true one. The middle picture matters: an answer that already flips there was broken by
redrawing, not by the attack. Where C also has styles, a fourth picture is a free drawing of the
caption, in a style that C chose: another picture of the same content. A heading with ≠ says that
a reader does not find the clean picture's objects there, so the "true" answer may be wrong of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import NotRequired, TypedDict

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from unigame.errors import UserError
from unigame.reports import style

Picture = NDArray[np.floating]

_CARD_INCHES = (4.6, 2.2)
_LINE_INCHES = 0.17
# Below this many pixels a side, pixels are repeated so that viewers do not blur small pictures.
_MIN_SIDE = 384


class GalleryRow(TypedDict):
    """One card. Pictures are (H, W, 3), float in [0, 1]; the rest is text."""

    clean: Picture
    drawn: Picture
    adversarial: Picture
    question: str
    answer: str
    said_clean: str
    said_drawn: str
    said_adversarial: str
    styled: NotRequired[Picture]
    said_styled: NotRequired[str]
    style: NotRequired[str]
    """What the styled picture's heading says of it."""
    changed: NotRequired[frozenset[str]]
    """Keys of the pictures in which a reader does not find what the clean one shows."""


_PANELS = (
    ("clean", "said_clean", "clean"),
    ("drawn", "said_drawn", "redrawn, no attack"),
    ("adversarial", "said_adversarial", "adversarial"),
)
_STYLED = ("styled", "said_styled", "drawn anew")


def save_gallery(rows: Sequence[GalleryRow], path: str | Path, *, columns: int = 2) -> Path:
    """Draw the cards into one picture file, ``columns`` cards wide, and return its path.

    Raises:
        UserError: no rows, or a picture that is not (H, W, 3) in [0, 1].
    """
    if not rows:
        raise UserError("the gallery has no rows; pass at least one drawn example")
    columns = max(1, min(columns, len(rows)))
    lines = -(-len(rows) // columns)
    questions = [_question_lines(row) for row in rows]
    tallest = max(text.count("\n") for text in questions)
    panels = (*_PANELS, _STYLED) if all("styled" in row for row in rows) else _PANELS
    card_width = _CARD_INCHES[0] * len(panels) / len(_PANELS)
    card_height = _CARD_INCHES[1] + _LINE_INCHES * tallest
    with rc_context(style.RC):
        figure = Figure(figsize=(card_width * columns, card_height * lines))
        cells = figure.subfigures(lines, columns, squeeze=False, wspace=0.02, hspace=0.0)
        for index, (row, question) in enumerate(zip(rows, questions, strict=True)):
            cell = cells[index // columns][index % columns]
            _card(cell, row, question, card_height, tallest, panels)
        return style.save(figure, path)


def enlarge(picture: Picture, min_side: int = _MIN_SIDE) -> Picture:
    """Repeat pixels by a whole factor until the shorter side has at least ``min_side`` of them."""
    factor = max(1, -(-min_side // min(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _question_lines(row: GalleryRow) -> str:
    return "\n".join(wrap(row["question"], width=46, max_lines=3, placeholder=" ...")) or " "


def _card(
    cell: SubFigure,
    row: GalleryRow,
    question: str,
    height: float,
    lines: int,
    panels: Sequence[tuple[str, str, str]],
) -> None:
    top = 1 - (0.29 + _LINE_INCHES * (lines + 1)) / height
    axes = cell.subplots(1, len(panels), gridspec_kw={"wspace": 0.05})
    cell.subplots_adjust(left=0.02, right=0.98, bottom=0.27 / height, top=top)
    heading_y = 1 - 0.1 / height
    cell.text(0.02, heading_y, question, va="top", ha="left", weight="bold", fontsize=9)
    truth = f"true: {_short(row['answer'])}"
    cell.text(0.98, heading_y, truth, va="top", ha="right", fontsize=9, color=style.MUTED)
    for ax, (picture_key, said_key, heading) in zip(axes, panels, strict=True):
        picture = _checked(row[picture_key], picture_key)  # type: ignore[literal-required]
        said = str(row[said_key])  # type: ignore[literal-required]
        right = said.strip().lower() == row["answer"].strip().lower()
        colour = style.RIGHT if right else style.WRONG
        ax.imshow(enlarge(picture), interpolation="nearest", vmin=0, vmax=1)
        if picture_key == "styled" and row.get("style"):
            heading = f"{heading}: {_short(row['style'], 20)}"
        changed = picture_key in row.get("changed", ())
        heading, weight = (f"≠ {heading}", "bold") if changed else (heading, "normal")
        shade = style.HARD if changed else style.MUTED
        ax.set_title(heading, fontsize=8, weight=weight, color=shade, loc="center", pad=3)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(False)
        for spine in ax.spines.values():
            spine.set(visible=True, color=colour, linewidth=1.6)
        # The mark repeats what the colour says, for print and for colour-blind readers.
        ax.set_xlabel(
            f"{'✓' if right else '✗'} {_short(said)}", color=colour, fontsize=9, weight="bold"
        )


def _short(text: str, width: int = 15) -> str:
    text = " ".join(text.split()) or "(nothing)"
    return text if len(text) <= width else text[: width - 3] + "..."


def _checked(picture: Picture, name: str) -> Picture:
    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise UserError(
            f"gallery picture {name!r} has shape {picture.shape}; pass (height, width, 3), "
            "such as image.permute(1, 2, 0).numpy()"
        )
    low, high = float(picture.min()), float(picture.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise UserError(
            f"gallery picture {name!r} spans [{low:.3g}, {high:.3g}]; pass floats in [0, 1] "
            "(divide 8-bit pixels by 255)"
        )
    return picture.clip(0, 1)
