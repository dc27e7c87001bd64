"""``results.json`` of ``unigame evaluate``: one model, several benchmarks, read and checked.

Beside figures with intervals it holds every unit's counts, so that two records can be paired, and
everything that must be equal before they may be: data, prompt and parser, scorer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unigame.errors import UserError
from unigame.reports.checks import AGAIN, check_counts, check_metric, read_estimate
from unigame.reports.metrics import Estimate, Metric, from_json
from unigame.system.json_text import parse_json

FORMAT = "unigame-evaluation/1"


@dataclass(frozen=True)
class BenchmarkRecord:
    """One benchmark of one model.

    Attributes:
        name: such as ``"pope"``.
        title: such as ``"POPE"``.
        dataset: id, config, revision, split, fingerprint.
        variant: names of prompt and parser.
        scorer: judge, detector, encoders; empty for plain rules.
        generation: how answers or pictures were drawn.
        counts: items, scored, unparsed, skipped and unscored.
        metrics: by name, the headline first.
        figures: the metrics' values with intervals, as they were written.
        warnings: one line each.
        pictures: digest of what the items show; empty where none is shown, or it was not noted.
    """

    name: str
    title: str
    dataset: Mapping[str, Any]
    variant: Mapping[str, Any]
    scorer: Mapping[str, Any]
    generation: Mapping[str, Any]
    counts: Mapping[str, Any]
    metrics: Mapping[str, Metric]
    figures: Mapping[str, Estimate]
    warnings: Sequence[str] = ()
    pictures: str = ""

    @property
    def headline(self) -> str:
        """Name of the metric that stands for the benchmark."""
        return next(iter(self.metrics))


@dataclass(frozen=True)
class Record:
    """One model's evaluation; ``training`` is what its training cost, where that is known."""

    path: Path
    model: Mapping[str, Any]
    benchmarks: Mapping[str, BenchmarkRecord]
    summary: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Model and adapter, without the folders they lie in."""
        adapter = self.model.get("adapter")
        ids = [self.model.get("id")] + ([adapter.get("id")] if isinstance(adapter, Mapping) else [])
        return " + ".join(Path(str(id)).name for id in ids if id) or self.path.parent.name

    @property
    def weights(self) -> tuple[Any, ...]:
        """Hashes of model and adapter and of what they are read with: the same are one model."""
        adapter = self.model.get("adapter") or {}
        return tuple(part.get(key) for key in ("sha256", "setup") for part in (self.model, adapter))

    @property
    def kept(self) -> str:
        """In which precision, and how quantised, its weights were: ``"bfloat16, nf4"``."""
        quantization = self.model.get("quantization") or "none"
        parts = [self.model.get("dtype"), quantization if quantization != "none" else None]
        return ", ".join(str(part) for part in parts if part)

    def is_of_adapter(self, digest: str) -> bool:
        """Whether it is of the adapter with this ``folder_sha256``; of no adapter it is not."""
        adapter = self.model.get("adapter")
        return isinstance(adapter, Mapping) and adapter.get("sha256") == digest


def results_in(*folders: Path) -> list[Path]:
    """The records in folders of a run, each once: ``results.json`` and ``*/results.json``."""
    found = (
        file
        for folder in folders
        for file in sorted([*folder.glob("results.json"), *folder.glob("*/results.json")])
    )
    return list(dict.fromkeys(found))


def read_record(path: str | Path) -> Record:
    """Read a record; a folder stands for the ``results.json`` in it.

    Raises:
        UserError: it cannot be read, is no such record, is of another version, has no benchmark,
            or contradicts itself (``checks.py``).
    """
    path = Path(path)
    if path.is_dir():
        inside = [] if (path / "results.json").is_file() else results_in(path)
        if inside:
            raise UserError(
                f"{path} is the folder of a run, with evaluations inside; pass the one that is "
                f"meant: {', '.join(str(file.parent) for file in inside)}"
            )
        path = path / "results.json"
    try:
        raw = parse_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; pass the results.json of `unigame evaluate`"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); run the evaluation again") from None
    _check_format(raw, path)
    benchmarks = raw.get("benchmarks")
    if not isinstance(benchmarks, Mapping) or not benchmarks:
        raise UserError(
            f"{path} holds no benchmark; its evaluation was stopped early: run it again"
        )
    return Record(
        path=path,
        model=_mapping(raw, "model", path),
        benchmarks={
            name: _benchmark(name, entry, path)
            for name, entry in benchmarks.items()
            if not _is_submission(entry)
        },
        summary=_mapping(raw, "summary", path),
        training=_mapping(raw, "training", path),
    )


MANY_UNPARSED = 0.1
"""Share of replies without a readable answer above which a figure says little of the model."""


def unparsed_warning(counts: Mapping[str, Any]) -> str:
    """A warning where more than a tenth of the replies could not be read; empty otherwise."""
    unparsed, scored = counts.get("unparsed") or 0, counts.get("scored") or 0
    if unparsed <= MANY_UNPARSED * scored:
        return ""
    return (
        f"{unparsed} of {scored} replies are unparsed: no rule could read an answer in them, so "
        "the figures tell little of what the model sees; read predictions.jsonl, and choose a "
        "--prompt or --parser that suits it"
    )


def _check_format(raw: Any, path: Path) -> None:
    written = raw.get("format") if isinstance(raw, Mapping) else None
    if written == FORMAT:
        return
    if isinstance(written, str) and written.startswith(FORMAT.partition("/")[0]):
        raise UserError(
            f"{path} has the format {written!r} and this version reads {FORMAT!r}; "
            "install the version of unigame that wrote it, or evaluate again"
        )
    if isinstance(raw, Mapping) and "arms" in raw:
        raise UserError(
            f"{path} is the table of an earlier version's demo; compare the demo's records "
            f"instead: {path.parent / 'arms' / '*' / 'evaluation'}"
        )
    raise UserError(f"{path} is no record of an evaluation; pass what `unigame evaluate` wrote")


def _mapping(raw: Mapping[str, Any], key: str, where: object) -> Mapping[str, Any]:
    value = raw.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{where}: {key} is {value!r}, not an object; run the evaluation again")
    return value or {}


def _benchmark(name: str, entry: Any, path: Path) -> BenchmarkRecord:
    where = f"{path}: {name}"
    metrics = entry.get("metrics") if isinstance(entry, Mapping) else None
    if not isinstance(metrics, Mapping) or not metrics:
        raise UserError(f"{where} has no metrics; run this benchmark again")
    # The headline first; the others keep their order.
    ordered = sorted(metrics.items(), key=lambda item: not _is_headline(item[1]))
    parts = {
        key: _mapping(entry, key, where)
        for key in ("dataset", "variant", "scorer", "generation", "counts")
    }
    if sum(_is_headline(metric) for metric in metrics.values()) > 1:
        raise UserError(f"{where} has two headlines, so it was put together by hand; {AGAIN}")
    warnings = entry.get("warnings") or []
    if not isinstance(warnings, list):
        raise UserError(f"{where}: warnings is {warnings!r}, not a list; {AGAIN}")
    check_counts(parts["counts"], where)
    found = {key: from_json(key, metric, where) for key, metric in ordered}
    figures = {key: read_estimate(metric, f"{where}.{key}") for key, metric in ordered}
    for key, metric in found.items():
        check_metric(metric, figures[key], f"{where}.{key}")
    return BenchmarkRecord(
        name=name,
        title=str(entry.get("title") or name),
        metrics=found,
        figures=figures,
        warnings=[str(line) for line in warnings],
        pictures=str(entry.get("pictures") or ""),
        **parts,
    )


def _is_submission(entry: Any) -> bool:
    """Whether an entry is answers for a server that keeps the truth: there is nothing to show."""
    variant = entry.get("variant") if isinstance(entry, Mapping) else None
    return isinstance(variant, Mapping) and variant.get("parser") == "submission"


def _is_headline(metric: Any) -> bool:
    return isinstance(metric, Mapping) and metric.get("headline") is True
