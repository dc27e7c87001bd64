"""``write_report``: the page of a run or several, as one file that needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from unigame import __version__
from unigame.errors import UserError
from unigame.reports.compare import Comparison, compare
from unigame.reports.metrics import ALONE
from unigame.reports.page import charts, maps, pictures, verdict
from unigame.reports.page.advice import Step, next_steps
from unigame.reports.page.charts import Group, Phase
from unigame.reports.page.pictures import Card, Drawn
from unigame.reports.page.progress import STATE, latest_checkpoint, steps_of
from unigame.reports.page.runs import (
    DEMO_BASELINE,
    DEMO_LABELS,
    RunFiles,
    demo_config,
    demo_findings,
    read_run,
)
from unigame.reports.tables import UNICODE, headings, notes_of

REPORT_FILE = "report.html"
MARKS = {1: "better", -1: "worse", 0: ""}
NOT_RECORDED = "this run took none down (it is too short, of an older version, or was cut off)"


@dataclass(frozen=True)
class Section:
    """One run on the page."""

    id: str
    label: str
    steps: int
    summary: str
    findings: list[Mapping[str, Any]]
    healthy: bool
    unjudged: str
    """Why its figures say nothing; empty where they do."""
    said: list[str]
    """Closing sentences of its methods."""
    warnings: list[str]
    groups: list[Group]
    phases: list[Phase]
    no_memory: str
    cards: list[Card]
    kinds: list[tuple[str, str, int]]
    answer_kinds: list[tuple[str, int]]
    drawings: list[tuple[str, list[Drawn]]]
    """By method: drawings that U confirmed."""
    facts: list[tuple[str, str]]
    settings: str
    last: list[tuple[str, str]]

    @property
    def tells(self) -> bool:
        """Whether it says how it did, or why it cannot."""
        return self.healthy or bool(self.unjudged)


def write_report(runs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Read the folders of runs and write the page.

    Args:
        runs: output_dirs of runs, a demo's folder, or folders of evaluations. Where they hold
            several evaluations, differences are to the first one; if the first run is a demo, to
            its SFT.
        output: file to write; ``report.html`` in the first folder if left out.

    Returns:
        The file.

    Raises:
        UserError: a folder holds no run, a file in it is damaged, or two evaluations have one
            label.
    """
    folders = [Path(run) for run in runs]
    found = [read_run(f, label) for f, label in zip(folders, _labels(folders), strict=True)]
    sections = [section(run, number) for number, run in enumerate(found)]
    comparison = compared(found)
    demos = _judged(found, comparison)
    if comparison is not None:
        comparison = _with_verdicts(comparison, demos)
    path = Path(output) if output is not None else folders[0] / REPORT_FILE
    steps = next_steps(found, comparison)
    said = _verdict(found, sections, comparison, demos)
    text = render(sections, comparison, said, steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def render(
    sections: Sequence[Section],
    comparison: Comparison | None,
    said: str,
    steps: Sequence[Step] = (),
) -> str:
    """The page's text."""
    folder = files("unigame.reports.page")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    css, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return template.render(
        title=", ".join(one.label for one in sections),
        verdict=said,
        steps=steps,
        sections=sections,
        comparison=comparison,
        notes=notes_of(comparison) if comparison else [],
        headings=headings,
        cell_lines=_cell_lines,
        amplified=pictures.AMPLIFIED,
        block=charts.BLOCK,
        css=Markup(css),
        script=Markup(script),
        version=__version__,
    )


def compared(runs: Sequence[RunFiles]) -> Comparison | None:
    """The evaluations of all runs side by side; None where there are none.

    Differences are to the first evaluation; if the first run is a demo, to its SFT. Beside other
    runs the arms of a demo have its label before their own.

    Raises:
        UserError: two evaluations have one label, or records contradict each other.
    """
    named = [
        (_label(run, label, alone=len(runs) == 1), record)
        for run in runs
        for label, record in run.evaluations.items()
    ]
    if not named:
        return None
    labels, records = [label for label, _ in named], [record for _, record in named]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(
            f"two evaluations are called {twice[0]!r} on the page; rename the folder of one"
        )
    base = _label(runs[0], DEMO_LABELS[DEMO_BASELINE], alone=len(runs) == 1)
    baseline = labels.index(base) if runs[0].is_demo and base in labels else 0
    found = compare(records, labels, baseline)
    notes = [f"Left out: {line}." for run in runs for line in run.twice]
    return replace(found, notes=(*notes, *found.notes))


def _label(run: RunFiles, label: str, *, alone: bool) -> str:
    """Of an evaluation: two demos have the same arms, and a plain run's say whose they are."""
    return f"{run.label}: {label}" if run.is_demo and not alone else label


def _judged(runs: Sequence[RunFiles], comparison: Comparison | None) -> dict[str, verdict.Judged]:
    """What is said of each demo, against its own SFT, by the demo's label ("": it is alone)."""
    demos = [run for run in runs if run.is_demo and len(run.evaluations) > 1]
    found: dict[str, verdict.Judged] = {}
    for run in demos:
        arms = comparison if len(runs) == 1 else compared([run])
        assert arms is not None
        label = "" if len(runs) == 1 else run.label
        seed = int(demo_config(run.folder)["seed"])
        found[label] = verdict.of_demo(arms, seed, demo_findings(run.folder))
    return found


def _with_verdicts(comparison: Comparison, demos: Mapping[str, verdict.Judged]) -> Comparison:
    """With the verdicts on the demos below the tables, and what a reader must know of them."""
    lines = [_said(label, line) for label, demo in demos.items() for line in demo.lines]
    notes = [_said(label, note) for label, demo in demos.items() for note in demo.notes]
    return replace(comparison, verdict="\n".join(lines), notes=(*notes, *comparison.notes))


def _said(label: str, line: str) -> str:
    return f"{label}: {line}" if label else line


def _verdict(
    runs: Sequence[RunFiles],
    sections: Sequence[Section],
    comparison: Comparison | None,
    demos: Mapping[str, verdict.Judged],
) -> str:
    """The sentence on the last model; of demos, on the game of each, or that it is not finished."""
    if comparison is not None and len(comparison.labels) > 1:
        last = [run for run in runs if run.evaluations][-1]
        if last.is_demo and demos:
            return " ".join(_said(label, demo.title) for label, demo in demos.items())
        return verdict.sentence(comparison, len(comparison.labels) - 1)
    said = [one.summary for one in sections if one.summary]
    if comparison is not None:
        said.append("One evaluation, and nothing to compare it with: name a second run.")
    return " ".join(said)


def section(run: RunFiles, number: int) -> Section:
    """What the page shows of a run."""
    steps = max((int(entry["step"]) for entry in run.log if "step" in entry), default=0)
    unjudged = _unjudged(run)
    summary = unjudged or (verdict.of_training(run.log, steps) if run.log else "")
    if run.evaluations or run.left_out:
        summary = summary.partition("; no evaluation")[0].rstrip(".") + "." if summary else ""
    left_out = verdict.of_other_weights(run.left_out, measured=bool(run.evaluations))
    came = f"{run.label} is {run.progress}." if run.progress else ""
    summary = " ".join(filter(None, [came, summary, left_out]))
    cards, phases = pictures.cards(run.examples), charts.phases(run.log)
    return Section(
        id=f"run{number}",
        label=run.label,
        steps=steps,
        summary=summary,
        findings=list(run.about.get("findings", [])),
        healthy="findings" in run.about and not unjudged,
        unjudged=unjudged,
        said=[str(line) for line in run.about.get("said", [])],
        warnings=[str(line) for line in run.about.get("warnings", [])],
        groups=_groups(run),
        phases=phases,
        no_memory=_no_memory(run, phases),
        cards=cards,
        kinds=pictures.counts(cards),
        answer_kinds=pictures.answer_kinds(cards),
        drawings=[(name, pictures.drawings(entries)) for name, entries in run.drawings.items()],
        facts=list(_facts(run)),
        settings=_settings(run),
        last=_last(run.log),
    )


def _unjudged(run: RunFiles) -> str:
    """Why nothing can be said of a finished run: no step of it was logged."""
    logged = any("loss" in entry for entry in run.log)
    if logged or run.is_demo or run.checkpoint is not None or not run.is_training:
        return ""
    steps = max([steps_of(None, run.about), *(int(entry.get("step", 0)) for entry in run.log)])
    kept = (run.folder / STATE).is_file() or latest_checkpoint(run.folder) is not None
    return verdict.of_no_log(run.settings, steps, lost=not run.log and not kept)


def _groups(run: RunFiles) -> list[Group]:
    """The plots of a run; where the two maps are missing, why."""
    if not run.log:
        return []
    why = run.about.get("not_recorded", {})
    maps_of_run = {
        "path": ("path of the LoRA weights", maps.path(run.path)),
        "coverage": ("coverage map", maps.coverage(run.coverage)),
    }
    model = Group(
        charts.MODEL,
        [chart for _, chart in maps_of_run.values() if chart is not None],
        tuple(
            f"No {name}: {why.get(part, NOT_RECORDED)}."
            for part, (name, chart) in maps_of_run.items()
            if chart is None
        ),
    )
    groups = charts.dynamics(run.log)
    after_game = 1 if groups and groups[0].title == charts.GAME else 0
    return [*groups[:after_game], model, *groups[after_game:]]


def _no_memory(run: RunFiles, phases: Sequence[Phase]) -> str:
    """Why no phase has its memory; what the whole process took, where that is known."""
    if not phases or any(phase.memory is not None for phase in phases):
        return ""
    peak = run.about.get("peak_memory_mb")
    whole = f" The whole process took {peak:,} MiB at its worst moment." if peak else ""
    return f"Memory by phase is measured on a GPU.{whole}"


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    about, record = run.about, run.record
    recipe = record.get("recipe") or {}
    model = recipe.get("model") or (record.get("model") or {}).get("name")
    versions = about.get("versions", {})
    found = {
        "folder": str(run.folder),
        "command": about.get("command"),
        "model": model,
        "methods": ", ".join(record.get("methods", {})),
        "seeds": ", ".join(f"{name} {value}" for name, value in about.get("seeds", {}).items()),
        "device": about.get("device"),
        "processes": about.get("processes"),
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
    }
    return [(name, str(value)) for name, value in found.items() if value not in (None, "")]


def _settings(run: RunFiles) -> str:
    """Methods, recipe, settings that are not at their defaults, then all of them, as YAML."""
    parts = {
        "methods": run.record.get("methods"),
        "recipe": run.record.get("recipe"),
        "not at their defaults": run.about.get("settings"),
        "all settings of the run": run.settings,
    }
    filled = {name: value for name, value in parts.items() if value}
    return yaml.safe_dump(filled, sort_keys=False, allow_unicode=True) if filled else ""


def _last(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The latest value of every figure."""
    found: dict[str, float] = {}
    for entry in log:
        for name, value in entry.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[name] = float(value)
    return [(name, f"{value:.5g}") for name, value in sorted(found.items())]


def _cell_lines(cell: Any) -> tuple[str, str, str]:
    """(figure with interval, difference with interval, "better", "worse" or "")."""
    if cell.figure is None:
        return "", "", ""
    value, low, high = (cell.show(cell.figure[key]) for key in ("value", "low", "high"))
    text, gap = f"{value} [{ALONE if cell.alone else f'{low}, {high}'}]", ""
    if cell.gap is not None:
        value, low, high = (
            cell.show(cell.gap[key], signed=True) for key in ("value", "low", "high")
        )
        gap = f"{value} [{low}, {high}]{UNICODE.marks[cell.mark]}"
    return text, gap, MARKS[cell.mark]


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names; whole paths where these are not different."""
    names = [folder.resolve().name for folder in folders]
    twice = {name for name, number in Counter(names).items() if number > 1}
    return [str(f) if name in twice else name for f, name in zip(folders, names, strict=True)]
