"""Ask a model every item of some benchmarks, once; score the replies; write the record.

Layout of the output folder: ``results.json`` (all benchmarks, see ``record.py``) and, for each
benchmark, ``run.json`` (what made the predictions), ``predictions.jsonl`` and ``pictures/``. Every
batch is on disk before the next is asked, so a killed run goes on where it stopped; scoring is
always done again, from the predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from unigame.backbones.base import Backbone
from unigame.errors import OneProcessError, UserError
from unigame.evaluation import record as records
from unigame.evaluation.ask import Drawing
from unigame.evaluation.base import Benchmark, DataSource, Scored
from unigame.evaluation.ranks import Ranks
from unigame.evaluation.running import Job, Progress, Run, Silent
from unigame.evaluation.source import fingerprint
from unigame.evaluation.summary import summarise
from unigame.reports.metrics import from_json
from unigame.system.say import warn

RESULTS = "results.json"


def evaluate(
    backbone: Backbone,
    benchmarks: Sequence[Benchmark],
    *,
    sources: Mapping[str, DataSource],
    output: str | Path,
    model: Mapping[str, Any] | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    drawing: Drawing | None = None,
    max_images: int | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Evaluate one model on some benchmarks and return the record; see the module docstring.

    Args:
        backbone: the model; its mode is restored afterwards.
        benchmarks: from ``registry.build_benchmark``, each once.
        sources: benchmark name -> its data; a benchmark without an entry is read from the Hub.
        output: folder of this model's evaluation; an earlier run there is gone on with.
        model: identity for the record (``record.model_entry``); None: from the weights in memory.
        limit: about so many items of each benchmark, from the start (whole groups only).
        batch_size: rows asked at once; None: what should fit. Halved when memory runs out.
        drawing: seed, guidance and temperature of the pictures; None: the usual ones of
            the model's family.
        max_images: pictures that a question may show; None: as many as the model takes.
        progress: told what happens.
        ranks: which of how many processes this is, all called alike on one file system (see
            ``ranks.py``); None: the only one. The record is the first one's; others get ``{}``.

    Raises:
        UserError: data or scorers cannot be had, a benchmark asks to draw and the model cannot, or
            the output is of other settings or of another model, or holds more items than the limit
            leaves, all before the first question; or a benchmark could not be scored, when the
            others are done and recorded.
    """
    ranks = ranks or Ranks()
    jobs = load_jobs(benchmarks, sources, limit=limit, scored=ranks.first)
    if ranks.first:
        sizes = {job.benchmark.name: len(job.loaded.items) for job in jobs}
        records.require_no_fewer(Path(output) / RESULTS, sizes, limit)
    return run_jobs(
        backbone,
        jobs,
        output=output,
        model=model,
        batch_size=batch_size,
        drawing=drawing,
        max_images=max_images,
        progress=progress,
        ranks=ranks,
    )


def load_jobs(
    benchmarks: Sequence[Benchmark],
    sources: Mapping[str, DataSource],
    *,
    limit: int | None = None,
    scored: bool = True,
) -> list[Job]:
    """Read the items of all benchmarks and prepare the scorers; no model is needed yet.

    Args:
        benchmarks: each once.
        sources: benchmark name -> its data.
        limit: about so many items of each.
        scored: whether this process scores; if not, no scorer is prepared.

    Raises:
        UserError: a data set or a scorer cannot be had, or a benchmark is listed twice.
    """
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise UserError(f"a benchmark is listed twice: {', '.join(names)}")
    jobs = []
    for benchmark in benchmarks:
        loaded = benchmark.load(sources.get(benchmark.name, DataSource()), limit)
        if not loaded.dataset.fingerprint:
            info = replace(loaded.dataset, fingerprint=fingerprint(loaded.items))
            loaded = replace(loaded, dataset=info)
        if scored and loaded.skips.skipped:
            # However few: those that are left out may be the hard ones, or all of one kind.
            warn(
                f"{benchmark.title}: {len(loaded.skips.skipped)} rows are left out and "
                f"{len(loaded.items)} items kept, which the figures are of: "
                f"{loaded.skips.reasons()}"
            )
        jobs.append(Job(benchmark, loaded))
    if scored:
        for benchmark in benchmarks:  # after the data: a wrong folder is found faster than a model
            benchmark.prepare()
    return jobs


def run_jobs(
    backbone: Backbone,
    jobs: Sequence[Job],
    *,
    output: str | Path,
    model: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    drawing: Drawing | None = None,
    max_images: int | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """As ``evaluate``, with the items already loaded."""
    if any(job.benchmark.task != "answer" for job in jobs):
        backbone.require_drawing()
    output, progress, ranks = Path(output), progress or Silent(), ranks or Ranks()
    model = dict(model or records.model_entry(backbone))
    most = min(max_images or backbone.max_images, backbone.max_images)
    drawing = drawing or Drawing(guidance_scale=backbone.facts.guidance_scale)
    runs = [Run(job, output / job.benchmark.name, model, drawing, most, ranks) for job in jobs]
    if not ranks.first:
        return _ask_only(backbone, runs, batch_size, progress)
    results = output / RESULTS
    record = records.open_record(results, model)
    for run in runs:
        run.check()
    scored = {name: _scored(entry) for name, entry in record["benchmarks"].items()}
    failures: list[str] = []
    with _evaluating(backbone):
        for run in runs:
            try:
                entry, scored[run.name] = run.go(backbone, batch_size, progress)
            except UserError as error:  # hours of other benchmarks must not be lost with it
                progress.end(run.name, None)
                failures.append(f"{run.name}: {error}")
                continue
            record["benchmarks"][run.name] = entry
            record["summary"] = summarise(scored)
            records.write_json(results, record)
            progress.end(run.name, entry)
    if failures:
        raise UserError("; ".join(failures))
    return record


def _ask_only(
    backbone: Backbone, runs: Sequence[Run], batch_size: int | None, progress: Progress
) -> dict[str, Any]:
    """A share of the items, for the first rank to score."""
    for run in runs:
        run.check()
    with _evaluating(backbone):
        for run in runs:
            try:
                run.ask(backbone, batch_size, progress)
            except UserError as error:  # met here alone, such as a lack of memory
                raise OneProcessError(f"process {run.ranks.rank}: {error}") from error
    return {}


def _scored(entry: Mapping[str, Any]) -> Scored:
    """What an earlier run found, as far as the summary needs it."""
    metrics = [from_json(name, metric) for name, metric in entry["metrics"].items()]
    unscored = sum((entry["counts"].get("unscored") or {}).values())
    return Scored(metrics, unscored={f"#{number}": "" for number in range(unscored)})


@contextmanager
def _evaluating(backbone: Backbone) -> Iterator[None]:
    training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(training)
