"""What lies in the folder of a run, for the page: log, pictures, findings, settings, evaluations.

    trainer_state.json (or log.json)       figures by step
    examples/examples.json                 pictures, with what the model said
    drawings/verify.json, imagine.json     drawings that U confirmed
    dynamics/path.jsonl, coverage.json     way of the weights, map of the pictures
    about.json                             command, versions, seeds, findings
    run.json, unigame_config.json          model, data, methods; every setting
    results.json, */results.json           evaluations

Each may be missing: of a run without a result yet the newest checkpoint is read. A run has its
result once ``save_state`` wrote ``trainer_state.json``, or where its weights lie beside an
``about.json``, which ``train`` writes at its end; not if it went on from there. An evaluation of
other weights than those in the folder and its checkpoints is left out: a run that was trained anew,
or further, is not what was measured. A demo's folder stands for its arms: their evaluations and
drawings, and the game's run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unigame.bundled import BUNDLED
from unigame.errors import UserError
from unigame.reports.joined import joined
from unigame.reports.page.progress import (
    ABOUT,
    ADAPTER_WEIGHTS,
    DEMO_LOG,
    STATE,
    latest_checkpoint,
    newest_checkpoint,
    progress_of,
    read_file,
    steps_of,
)
from unigame.reports.records import Record, read_record, results_in
from unigame.reports.weights import folder_sha256, whole_model
from unigame.system.json_text import parse_json

EXAMPLES_FORMAT, ABOUT_FORMAT = "unigame-examples/1", "unigame-run/1"
COVERAGE_FORMAT, DRAWINGS_FORMAT = "unigame-coverage/1", "unigame-drawings/1"
DEMO_BASELINE, DEMO_PLAYER = "sft", "unigame"
DEMO_LABELS = {
    "sft": "SFT",
    "sft_equal_samples": "SFT, equal samples",
    "round_trip": "round trip",
    "unigame": "UniGame",
    "reca": "RecA",
}
RESULTS = "results.json"
HOW_IT_WENT = ("findings", "said", "steps", "warnings")
"""What ``about.json`` says of the steps that were made until it was written."""
MOST_NAMED = 8
BEGUN = ("_replaced", "_unfinished")  # what training leaves until it has a result


@dataclass(frozen=True)
class RunFiles:
    """One run.

    Attributes:
        folder: where it lies.
        label: its name on the page.
        log: what was logged, in order.
        about: of ``about.json``.
        record: of ``run.json``.
        settings: of ``unigame_config.json``.
        examples: entries of ``examples.json``; pictures are paths.
        drawings: entries of each file of ``drawings/``, by method; their picture is a path.
        path: points of ``dynamics/path.jsonl``.
        coverage: of ``dynamics/coverage.json``.
        evaluations: records of it and of its base, by label; of a demo, those of its arms. What
            was evaluated of one model into several folders is one.
        left_out: folders of evaluations that are of other weights.
        twice: a line for each benchmark that was left out, because another evaluation has it.
        is_demo: whether the folder is a demo's.
        checkpoint: the newest one, where the run has no result yet; of a checkpoint the folder.
    """

    folder: Path
    label: str
    log: list[Mapping[str, Any]] = field(default_factory=list)
    about: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    examples: list[Mapping[str, Any]] = field(default_factory=list)
    drawings: Mapping[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    path: list[Mapping[str, Any]] = field(default_factory=list)
    coverage: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Record] = field(default_factory=dict)
    left_out: tuple[Path, ...] = ()
    twice: tuple[str, ...] = ()
    is_demo: bool = False
    checkpoint: Path | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show of it."""
        found = (self.examples, self.drawings, self.evaluations, self.left_out)
        return not any(found) and not self.is_training

    @property
    def is_training(self) -> bool:
        """Whether something was trained here, and no model evaluated alone."""
        return bool(self.log or self.about) or self.checkpoint is not None

    @property
    def trained(self) -> Path:
        """The folder of its weights, as far as it came."""
        return self.checkpoint or self.folder

    @property
    def is_whole_model(self) -> bool:
        """Whether it trained a model's own weights, or a connector, in the place of an adapter."""
        has_adapter = (self.trained / ADAPTER_WEIGHTS).is_file()
        return not has_adapter and bool(whole_model(self.trained))

    @property
    def progress(self) -> str:
        """Of a run without a result how far it came, of a checkpoint where it stands; else ""."""
        return "" if self.checkpoint is None else progress_of(self.checkpoint)


def read_run(folder: Path, label: str) -> RunFiles:
    """Read what is there.

    Raises:
        UserError: there is no such folder, nothing of a run in it, other runs in it, or a damaged
            file.
    """
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is no folder; give the output_dir of a run")
    arms = demo_arms(folder)
    if not _is_run(folder) and not (folder / RESULTS).is_file():
        _require_no_runs_in(folder)
    training = folder / "arms" / DEMO_PLAYER if arms else folder
    evaluations, left_out, twice = (
        ({arm: read_record(place) for arm, place in arms.items()}, (), ())
        if arms
        else _evaluations(folder, label)
    )
    checkpoint = newest_checkpoint(training)
    places = (training, training / "adapter", *([checkpoint] if checkpoint else []))
    found = RunFiles(
        folder=folder,
        label=label,
        # Of a run that was saved without its state, its last checkpoint has the log.
        log=_log(checkpoint or training) or _log(latest_checkpoint(training) or training),
        about=_about(places, checkpoint),
        record=_first(places, "run.json", {}),
        settings=_first(places, "unigame_config.json", {}),
        examples=list(_examples(training)),
        drawings={
            method: entries
            for place in ([arm.parent for arm in arms.values()] if arms else [folder])
            for method, entries in _drawings(place / "drawings")
        },
        path=_path(training / "dynamics" / "path.jsonl"),
        coverage=_coverage(training / "dynamics" / "coverage.json"),
        evaluations=evaluations,
        left_out=left_out,
        twice=twice,
        is_demo=bool(arms),
        checkpoint=checkpoint,
    )
    if found.is_empty:
        raise UserError(
            f"{str(folder)!r} holds no run (trainer_state.json), no examples/ and no results.json; "
            "give the output_dir of a run that has a result or a checkpoint, or the folder of an "
            "evaluation"
        )
    return found


def _is_run(folder: Path) -> bool:
    """Whether something was trained here: a run, or the arms of a demo."""
    own = (STATE, ABOUT, DEMO_LOG, "examples/examples.json")
    there = any((folder / name).is_file() for name in own)
    begun = (folder / "arms").is_dir() and (folder / "config.json").is_file()
    return there or begun or latest_checkpoint(folder) is not None


def _require_no_runs_in(folder: Path) -> None:
    """Refuse a folder of runs: the evaluations in it would be taken for those of one run.

    A folder of evaluations alone is none: they are shown together.

    Raises:
        UserError: which runs lie in it, and the command that takes them.
    """
    places = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] not in "._")
    if not any(map(_is_run, places)):
        return
    within = [place for place in places if _is_run(place) or (place / RESULTS).is_file()]
    named = shlex.join(map(str, within[:MOST_NAMED]))
    more = f" (the first {MOST_NAMED} of {len(within)})" if len(within) > MOST_NAMED else ""
    page = f" --output {shlex.quote(str(folder / 'report.html'))}" if len(within) > 1 else ""
    raise UserError(
        f"{str(folder)!r} is no run, but runs lie in it; name those that are to stand side by "
        f"side{more}: unigame report {named}{page}"
    )


def demo_arms(folder: Path) -> dict[str, Path]:
    """Evaluations of a demo's arms by label, in the demo's order; empty: it is no demo."""
    changes = read_file(folder / "config.json", {}).get("arms")
    if not isinstance(changes, Mapping):
        return {}
    places = {arm: folder / "arms" / arm / "evaluation" for arm in ("base", *changes)}
    there = {arm: place for arm, place in places.items() if (place / RESULTS).is_file()}
    return {DEMO_LABELS.get(arm, arm): place for arm, place in there.items()}


def demo_config(folder: Path) -> Mapping[str, Any]:
    """What a demo was run with: its seed, model and recipe, where its folder says."""
    found: Mapping[str, Any] = read_file(folder / "config.json", {})
    return {"seed": 0, "model": BUNDLED, "recipe": "janus_nano", **found}


def demo_findings(folder: Path) -> list[str]:
    """What the runs of a demo's arms found wrong, a line each with the arm's name."""
    lines = []
    for label, place in demo_arms(folder).items():
        about = read_file(place.parent / ABOUT, {})
        if about.get("format") != ABOUT_FORMAT:
            continue
        lines += [
            f"Health of {label}: {finding['symptom']}: {finding['says']}; {finding['knob']}."
            for finding in about.get("findings", [])
        ]
    return lines


def _evaluations(
    folder: Path, label: str
) -> tuple[dict[str, Record], tuple[Path, ...], tuple[str, ...]]:
    """Records of the run and of its base by label, folders of others, and what is there twice."""
    own, left_out = list[Record](), list[Path]()
    files = results_in(folder)
    weights = _weights(folder) if files else None
    for file in files:
        record = read_record(file)
        if weights is not None and weights.replaced(record, folder):
            left_out.append(file.parent)
        else:
            own.append(record)
    groups = joined(own)
    found: dict[str, Record] = {}
    for group in groups:
        alone = len(groups) == 1 and not left_out
        alone = alone and (weights is None or weights.has(group.record))
        places = ", ".join(str(part.path.parent.relative_to(folder)) for part in group.parts)
        found[label if alone else f"{label} ({places})"] = group.record
    twice = tuple(line for group in groups for line in group.twice)
    return found, tuple(left_out), twice


@dataclass(frozen=True)
class _Weights:
    """Digests of what a run made, at its end and in its checkpoints: adapters, or whole models."""

    adapters: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    def has(self, record: Record) -> bool:
        """Whether a record is of them."""
        if record.model.get("adapter"):
            return any(map(record.is_of_adapter, self.adapters))
        return record.weights[0] in self.models

    def replaced(self, record: Record, folder: Path) -> bool:
        """Whether a record is of what lay in the folder before: neither of them, nor of a base."""
        if self.has(record):
            return False
        name = str(record.model.get("id") or "")
        its_own = bool(name) and Path(name).expanduser().resolve() == folder.resolve()
        return bool(record.model.get("adapter")) or its_own


def _weights(folder: Path) -> _Weights | None:
    """The weights in the folder of a run and in its checkpoints.

    None: nothing was trained here, it is an evaluation's folder.
    """
    checkpoints = [place for place in sorted(folder.glob("checkpoint-*")) if place.is_dir()]
    adapters, models = list[str](), list[str]()
    for place in (folder, *checkpoints):
        if (place / ADAPTER_WEIGHTS).is_file():
            adapters.append(folder_sha256(place))
        elif whole_model(place):
            models.append(folder_sha256(place))
    begun = bool(checkpoints) or any((folder / name).is_dir() for name in BEGUN)
    return _Weights(tuple(adapters), tuple(models)) if adapters or models or begun else None


def _log(folder: Path) -> list[Mapping[str, Any]]:
    state = read_file(folder / STATE, {})
    log = state.get("log_history") or read_file(folder / DEMO_LOG, [])
    return [entry for entry in log if isinstance(entry, Mapping)]


def _examples(folder: Path) -> Iterator[Mapping[str, Any]]:
    place = folder / "examples"
    content = read_file(place / "examples.json", {})
    if content and content.get("format") != EXAMPLES_FORMAT:
        raise UserError(
            f"{place / 'examples.json'} has the format {content.get('format')!r} and this version "
            f"reads {EXAMPLES_FORMAT!r}; use the version of unigame that made the run"
        )
    for entry in content.get("examples", []):
        pictures = {kind: place / Path(name).name for kind, name in entry["pictures"].items()}
        if all(path.is_file() for path in pictures.values()):
            yield {**entry, "pictures": pictures}


def _drawings(folder: Path) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """By method, those whose picture is there."""
    for file in sorted(folder.glob("*.json")):
        content = read_file(file, {})
        if content.get("format") != DRAWINGS_FORMAT:
            raise UserError(
                f"{file} has the format {content.get('format')!r} and this version reads "
                f"{DRAWINGS_FORMAT!r}; use the version of unigame that made the run"
            )
        placed = [
            {**entry, "picture": folder / Path(entry["picture"]).name}
            for entry in content.get("drawings", [])
        ]
        there: list[Mapping[str, Any]] = [e for e in placed if e["picture"].is_file()]
        if there:
            yield str(content.get("method", file.stem)), there


def _path(file: Path) -> list[Mapping[str, Any]]:
    """Its points; a line that was cut as the run was killed is left out."""
    if not file.is_file():
        return []
    points: list[Mapping[str, Any]] = []
    lines = file.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            point = parse_json(line)
            size, _ = len(point["moved" if points else "start"]), int(point["step"])
            if points and size != len(points[0]["start"]):
                raise ValueError(f"{size} numbers, and {len(points[0]['start'])} at the start")
            points.append(point)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) > 1:
                break
            raise UserError(
                f"{file} cannot be read (line {number}: {error}); remove it, or run again"
            ) from error
    return points


def _coverage(file: Path) -> Mapping[str, Any]:
    content = read_file(file, {})
    if content and content.get("format") != COVERAGE_FORMAT:
        raise UserError(
            f"{file} has the format {content.get('format')!r} and this version reads "
            f"{COVERAGE_FORMAT!r}; use the version of unigame that made the run"
        )
    return content


def _about(places: tuple[Path, ...], checkpoint: Path | None) -> Mapping[str, Any]:
    """What a run says of itself; not how it went, where it went on from there to a checkpoint."""
    about: Mapping[str, Any] = _first(places, ABOUT, {})
    if about.get("format") != ABOUT_FORMAT:
        return {}
    if checkpoint is not None and steps_of(None, about) != steps_of(checkpoint, about):
        return {name: value for name, value in about.items() if name not in HOW_IT_WENT}
    return about


def _first(folders: tuple[Path, ...], name: str, default: Any) -> Any:
    return next((read_file(f / name, default) for f in folders if (f / name).is_file()), default)
