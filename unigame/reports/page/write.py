"""``write_report``: the page of a run or several, as one file that needs nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from unigame import __version__
from unigame.reports.compare import Comparison, compare
from unigame.reports.page import charts, maps, pictures, verdict
from unigame.reports.page.advice import Step, next_steps
from unigame.reports.page.charts import Group, Phase
from unigame.reports.page.pictures import Card, Drawn
from unigame.reports.page.runs import (
    DEMO_BASELINE,
    DEMO_LABELS,
    DEMO_PLAYER,
    RunFiles,
    demo_arms,
    demo_findings,
    read_run,
)
from unigame.reports.records import read_record
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


def write_report(runs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Read the folders of runs and write the page.

    Args:
        runs: output_dirs of runs, a demo's folder, or folders of evaluations. Where they hold
            several evaluations, differences are to the first one; in a demo, to SFT.
        output: file to write; ``report.html`` in the first folder if left out.

    Returns:
        The file.

    Raises:
        UserError: a folder holds no run, or a file in it is damaged.
    """
    folders = [Path(run) for run in runs]
    found = [read_run(f, label) for f, label in zip(folders, _labels(folders), strict=True)]
    sections = [section(run, number) for number, run in enumerate(found)]
    comparison = compared(found)
    path = Path(output) if output is not None else folders[0] / REPORT_FILE
    steps = next_steps(found, comparison)
    is_demo = len(found) == 1 and bool(demo_arms(folders[0]))
    said = _verdict(sections, comparison, is_demo)
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
    """The evaluations of all runs side by side; None where there are none."""
    places = {label: place for run in runs for label, place in run.evaluations.items()}
    if not places:
        return None
    labels, records = list(places), [read_record(place) for place in places.values()]
    base = DEMO_LABELS[DEMO_BASELINE]
    is_demo = len(runs) == 1 and bool(demo_arms(runs[0].folder))
    baseline = labels.index(base) if is_demo and base in labels else 0
    comparison = compare(records, labels, baseline)
    if is_demo and len(labels) > 1:
        config = json.loads((runs[0].folder / "config.json").read_text(encoding="utf-8"))
        found = demo_findings(runs[0].folder)
        return verdict.judged_demo(comparison, int(config.get("seed", 0)), found)
    return comparison


def _verdict(sections: Sequence[Section], comparison: Comparison | None, is_demo: bool) -> str:
    """The sentence on the last model; of a demo, on its game, or that it is not finished."""
    if comparison is not None and len(comparison.labels) > 1:
        if is_demo and not comparison.verdict:
            return comparison.notes[0]
        shown = DEMO_LABELS[DEMO_PLAYER] if is_demo else comparison.labels[-1]
        return verdict.sentence(comparison, comparison.labels.index(shown))
    if comparison is not None:
        alone = "One evaluation, and nothing to compare it with: name a second run."
        return " ".join([*(one.summary for one in sections if one.steps), alone])
    return " ".join(one.summary for one in sections)


def section(run: RunFiles, number: int) -> Section:
    """What the page shows of a run."""
    steps = max((int(entry["step"]) for entry in run.log if "step" in entry), default=0)
    summary = verdict.of_training(run.log, steps) if run.log else ""
    if run.evaluations:
        summary = summary.partition("; no evaluation")[0].rstrip(".") + "." if summary else ""
    cards, phases = pictures.cards(run.examples), charts.phases(run.log)
    return Section(
        id=f"run{number}",
        label=run.label,
        steps=steps,
        summary=summary,
        findings=list(run.about.get("findings", [])),
        healthy="findings" in run.about,
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
    text, gap = f"{value} [{low}, {high}]", ""
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
