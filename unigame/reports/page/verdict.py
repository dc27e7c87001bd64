"""What changed, in one sentence that a person can repeat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unigame.reports.compare import Cell, Comparison, listed, verdict
from unigame.reports.page.runs import DEMO_BASELINE, DEMO_LABELS, DEMO_PLAYER
from unigame.reports.panels import is_finite

SAID = 3  # figures in a sentence that can be repeated
LOGS = 10  # so many show how a run went
TRAINING_LOSS = "the training loss"


def sentence(comparison: Comparison, row: int) -> str:
    """One model against the baseline: gains and losses with their 95 % intervals."""
    name, base = comparison.labels[row], comparison.labels[comparison.baseline]
    found = [
        (title, cell)
        for grid in comparison.tables
        for title, cell in zip(grid.columns, grid.cells[row], strict=True)
        if cell.gap is not None and cell.judged
    ]
    if not found:
        return f"There is no difference between {name} and {base} with an interval."
    won, lost = ([pair for pair in found if pair[1].mark == mark] for mark in (1, -1))
    parts = []
    if won:
        parts.append(f"{name} is better than {base} on {_figures(won)}")
    if lost:
        parts.append(f"{'' if won else name + ' is '}worse than {base} on {_figures(lost)}")
    even = len(found) - len(won) - len(lost)
    if not parts:
        return (
            f"No figure tells {name} from {base}: all {len(found)} differences are within their "
            "95 % intervals."
        )
    rest = f", and not measurably different on {even} more" if even else ""
    return f"{', and '.join(parts)}{rest} (95 % intervals)."


def _figures(found: Sequence[tuple[str, Cell]]) -> str:
    shown = [f"{title} ({_gap(cell)})" for title, cell in found[:SAID]]
    more = len(found) - SAID
    return listed([*shown, f"{more} more"] if more > 0 else shown)


def _gap(cell: Cell) -> str:
    assert cell.gap is not None
    value, low, high = (cell.show(cell.gap[key], signed=True) for key in ("value", "low", "high"))
    return f"{value}, {low} to {high}"


@dataclass(frozen=True)
class Judged:
    """What is said of a demo.

    Attributes:
        title: the sentence on its game, or that it is not finished.
        lines: the verdict on UniGame and on each method after it; none if it is not finished.
        notes: what a reader must know of them.
    """

    title: str
    lines: tuple[str, ...]
    notes: tuple[str, ...]


def judged_demo(found: Comparison, seed: int, findings: Sequence[str] = ()) -> Comparison:
    """A demo's arms side by side, with the verdict on them; see ``of_demo``."""
    judged = of_demo(found, seed, findings)
    return replace(found, verdict="\n".join(judged.lines), notes=(*judged.notes, *found.notes))


def of_demo(found: Comparison, seed: int, findings: Sequence[str] = ()) -> Judged:
    """The verdict on UniGame and on each method after it, and what a reader must know of them.

    What a control without any attack gains as well cannot be the attack's doing. A demo that lacks
    fine-tuning or the game, because it is not finished, is not judged.

    Args:
        found: the arms side by side; the baseline is fine-tuning.
        seed: of the demo.
        findings: what the runs of the arms found wrong.
    """
    needed = [DEMO_LABELS[DEMO_BASELINE], DEMO_LABELS[DEMO_PLAYER]]
    if missing := [label for label in needed if label not in found.labels]:
        note = f"This demo is not finished: {listed(missing)} missing; nothing is judged."
        return Judged(note, (), (note, *findings))
    player = found.labels.index(DEMO_LABELS[DEMO_PLAYER])
    controls = range(found.baseline + 1, player)
    unattacked = {name for row in controls for name in found.marked(row, 1)}
    shared = [name for name in found.marked(player, 1) if name in unattacked]
    notes = [f"One training run per arm (seed {seed})."]
    if shared:
        notes.append(
            f"A control without any attack beat SFT as well on: {listed(shared)}. These gains are "
            "not shown to come from the attack."
        )
    lines = tuple(verdict(found, row) for row in range(player, len(found.labels)))
    return Judged(sentence(found, player), lines, (*notes, *findings))


def of_training(log: Sequence[Mapping[str, Any]], steps: int) -> str:
    """What the log alone lets one say; it claims nothing about accuracy."""
    said = []
    for key, name in (("clean_answer_ce", "U's loss on clean answers"), ("loss", TRAINING_LOSS)):
        if (ends := _ends(log, key)) is not None:
            said.append(f"{name} {_went(*ends, logs=len(_finite(log, key)))}")
            break
    lost, alone = _ends(log, "attack_success_rate"), _ends(log, "redrawn_success_rate")
    if lost is not None:
        beside = f", redrawing alone {100 * alone[1]:.0f} %" if alone is not None else ""
        said.append(f"at the end the attack took {100 * lost[1]:.0f} % of right answers{beside}")
    if not said:
        return "Nothing was logged that tells what changed."
    return (
        f"In {steps} steps {listed(said)}; no evaluation lies beside this run, so nothing is known "
        "of its accuracy."
    )


def of_no_log(settings: Mapping[str, Any], steps: int, *, lost: bool) -> str:
    """That a run logged nothing, or that its log is lost, and what to do in the next one.

    Args:
        settings: of the run.
        steps: optimizer steps done.
        lost: whether no file in the folder has a log at all.
    """
    judged = "so nothing can be judged"
    if lost:
        return (
            f"No log lies in this folder (no trainer_state.json), {judged}; in Python call "
            "trainer.save_state() after trainer.save_model()."
        )
    if (strategy := settings.get("logging_strategy", "steps")) != "steps":
        return f"No step was logged (logging_strategy={strategy}), {judged}; set it to steps."
    every = settings.get("logging_steps", "?")
    return (
        f"No step was logged of {steps} (logging_steps={every}), {judged}; set "
        f"logging_steps={max(1, steps // LOGS)}."
    )


def of_other_weights(places: Sequence[Path], measured: bool) -> str:
    """Which evaluations beside a run are not of it, and what to do; empty where all are.

    Args:
        places: their folders.
        measured: whether there is another evaluation to show.
    """
    if not places:
        return ""
    names = listed([str(place) for place in places])
    verb = "is" if len(places) == 1 else "are"
    unknown = "" if measured else ", so nothing is known of its accuracy"
    return (
        f"Left out: {names} {verb} of other weights than those that lie here now{unknown}; "
        "evaluate again into another folder, or give that folder by itself to see it."
    )


def _went(first: float, last: float, logs: int) -> str:
    """What a figure did, as far as the shown digits tell it."""
    before, after = f"{first:z.3f}", f"{last:z.3f}"
    if logs == 1:
        return f"was {after}"
    if before == after:
        return f"stayed at {after}"
    return f"{'fell' if last < first else 'rose'} from {before} to {after}"


def _finite(log: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(entry[name]) for entry in log if is_finite(entry.get(name))]


def _ends(log: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float] | None:
    """Means of the first and of the last third of the finite values: single logs are noisy."""
    values = _finite(log, name)
    third = math.ceil(len(values) / 3)
    if not values:
        return None
    return sum(values[:third]) / third, sum(values[-third:]) / third
