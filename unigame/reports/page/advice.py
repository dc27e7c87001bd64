"""What to do after reading a page: a few steps, each with its command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigame.bundled import BUNDLED, BUNDLED_MODELS
from unigame.reports.compare import Comparison
from unigame.reports.page.runs import RunFiles, demo_config
from unigame.settings import command_words


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        words: why and what.
        commands: to type, in this order.
    """

    words: str
    commands: tuple[str, ...] = ()


def next_steps(runs: Sequence[RunFiles], comparison: Comparison | None) -> list[Step]:
    """At most three, the most urgent one first.

    Args:
        runs: of the page.
        comparison: of their evaluations, where there are some.
    """
    if all(run.is_demo for run in runs):
        return _after_demo([demo_config(run.folder) for run in runs])
    trained = [run for run in runs if run.is_training and not run.is_demo]
    steps = [step for run in trained for step in _mend(run)][:1]
    measured = comparison is not None and len(comparison.labels) > 1
    if trained and not measured:
        steps += _measure(trained[-1])
    elif trained and comparison is not None:
        steps += _repeat(trained[-1])
        if (
            comparison.marked(len(comparison.labels) - 1, 1)
            and not steps[0].words.startswith("Mend")
            and not trained[-1].is_whole_model
        ):
            steps.append(_keep(trained[-1]))
    return steps


def _mend(run: RunFiles) -> list[Step]:
    found = run.about.get("findings", [])
    if not found:
        return []
    first, more = found[0], len(found) - 1
    others = f" Then look at the other {more}." if more else ""
    words = f"Mend {first['symptom']!r} of {run.label}, and train again: {first['knob']}.{others}"
    return [Step(words)]


def _measure(run: RunFiles) -> list[Step]:
    model, folder = shlex.quote(_model(run)), run.folder
    trained = _quoted(run.trained)
    # What trained no adapter, such as the warm-up of a composed model, is a model itself.
    own = trained if run.is_whole_model else f"{model} --adapter {trained}"
    # The bundled models' benchmarks need no data of others.
    what = f"--benchmarks {'all' if model in BUNDLED_MODELS else 'pope,mmmu'}"
    return [
        Step(
            "Measure what changed: nothing on this page says whether the model answers better.",
            (
                f"unigame evaluate --model {model} {what} --output {_quoted(folder / 'base')}",
                f"unigame evaluate --model {own} {what} --output {_quoted(_free(run))}",
                f"unigame report {_quoted(folder)}",
            ),
        )
    ]


def _free(run: RunFiles) -> Path:
    """A folder for its evaluation: one with a record of other weights takes no more."""
    names = ["evaluation", *(f"evaluation-{number}" for number in range(2, len(run.left_out) + 2))]
    return next(place for name in names if (place := run.folder / name) not in run.left_out)


def _repeat(run: RunFiles) -> list[Step]:
    seed = int(run.about.get("seeds", {}).get("seed", 0)) + 1
    typed = command_words.split(str(run.about.get("command", ""))) or ["unigame", "train", "RECIPE"]
    typed = command_words.masked(typed)  # an earlier version wrote secrets into about.json
    # The first run's own: its seed and folder, its checkpoints, its place on the Hub.
    again = shlex.join(command_words.rewritten(typed, drop=_is_of_one_run))
    other = run.folder.with_name(f"{run.folder.name}-seed{seed}")
    return [
        Step(
            "Repeat it with another seed: intervals are over questions, and one training run is "
            "one draw (docs/evidence.md).",
            (f"{again} --seed {seed} --output_dir {_quoted(other)}",),
        )
    ]


def _is_of_one_run(key: str) -> bool:
    name = key.removeprefix("training.")
    own = ("seed", "output_dir", "resume_from_checkpoint")
    return name in own or name.startswith("hub_") or command_words.is_secret(name)


def _keep(run: RunFiles) -> Step:
    merged = run.folder.with_name(f"{run.folder.name}-merged")
    return Step(
        "Keep it, as a checkpoint that plain transformers loads.",
        (f"unigame merge {_quoted(run.folder)} {_quoted(merged)}",),
    )


def _after_demo(demos: Sequence[Mapping[str, Any]]) -> list[Step]:
    """On the last demo's model, and with a seed that none of them had."""
    seed = 1 + max(int(demo["seed"]) for demo in demos)
    model, recipe = str(demos[-1]["model"]), str(demos[-1]["recipe"])
    named = f" --model {_quoted(model)}"
    again = "" if model == BUNDLED else named
    own = "" if model in BUNDLED_MODELS else named  # the recipe names a bundled one itself
    return [
        Step(
            "Repeat it with another seed: one training run an arm is one draw.",
            (f"unigame demo{again} --seed {seed} --output runs/demo-seed{seed}",),
        ),
        Step(
            "Change one number and play again.",
            (f"unigame train {recipe}{own} --beta 0.25 --output_dir runs/beta",),
        ),
    ]


def _model(run: RunFiles) -> str:
    recipe = run.record.get("recipe") or {}
    return str(recipe.get("model") or "MODEL")


def _quoted(path: object) -> str:
    return shlex.quote(str(path))
