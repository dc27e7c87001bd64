"""``unigame compare``: records of several models as the paper's tables, with paired differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from unigame.cli.console import next_step
from unigame.errors import UserError
from unigame.reports.compare import compare
from unigame.reports.records import Record, read_record
from unigame.reports.tables import print_comparison, write_comparison


def compare_records(
    paths: Sequence[Path],
    *,
    output: Path,
    baseline: int = 1,
    labels: Sequence[str] | None = None,
) -> None:
    """Print the comparison, and write compare.md, compare.csv and compare.tex to ``output``.

    Args:
        paths: ``results.json`` files, or the folders that hold them; at least two.
        output: folder to write to.
        baseline: which file, counted from 1, the differences are to.
        labels: names of the models, in the order of the files; None: from the records.

    Raises:
        UserError: fewer than two files, a file named twice, a file that is no record, labels or a
            baseline that do not fit the files.
    """
    _check(paths, baseline, labels)
    records = [read_record(path) for path in paths]
    comparison = compare(records, labels or _labels(records), baseline - 1)
    print_comparison(comparison)
    write_comparison(comparison, records, output)
    next_step(
        f"read {output}/compare.md, which has every metric and why a difference is missing",
        f"put it into a paper: {output}/compare.tex (booktabs); plot it: {output}/compare.csv",
    )


def _check(paths: Sequence[Path], baseline: int, labels: Sequence[str] | None) -> None:
    if len(paths) < 2:
        raise UserError(
            f"compare needs at least two results.json, got {len(paths)}; "
            "give one for each model, the baseline first"
        )
    twice = [str(p) for p, n in Counter(_record_file(path) for path in paths).items() if n > 1]
    if twice:
        raise UserError(f"{twice[0]} is named twice; a model has no difference to itself")
    if not 1 <= baseline <= len(paths):
        raise UserError(f"--baseline is {baseline}; give a number from 1 to {len(paths)}")
    if labels is None:
        return
    if len(labels) != len(paths):
        raise UserError(f"--labels has {len(labels)} names for {len(paths)} files; give one each")
    if len(set(labels)) < len(labels) or not all(labels):
        raise UserError(f"--labels {','.join(labels)}: every name must be different and not empty")


def _record_file(path: Path) -> Path:
    return (path / "results.json" if path.is_dir() else path).resolve()


def _labels(records: Sequence[Record]) -> list[str]:
    """The shortest names that tell the records apart: of the model, the folder, or the file."""
    choices = (
        [record.name for record in records],
        [record.path.resolve().parent.name for record in records],
        [str(record.path) for record in records],
    )
    return next((names for names in choices if len(set(names)) == len(names)), choices[-1])
