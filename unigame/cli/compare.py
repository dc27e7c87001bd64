"""``unigame compare``: records of several models as the paper's tables, with paired differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unigame.cli import options
from unigame.cli.app import argument, command, option
from unigame.cli.endings import next_step
from unigame.errors import UserError
from unigame.system.writable import require_writable

if TYPE_CHECKING:
    from unigame.reports.records import Record


@command("lay evaluations side by side: tables with paired differences")
@argument(
    "records",
    "results.json, or its folder",
    type=options.PATH,
    nargs=-1,
    required=True,
    metavar="RESULTS...",
)
@option("--output", type=options.PATH, default="runs/compare", help="folder to write")
@option(
    "--baseline",
    type=options.POSITIVE,
    default=1,
    help="which file the differences are to, from 1",
)
@option("--labels", help="names of the models: base,sft,unigame")
def compare(records: Sequence[Path], output: Path, baseline: int, labels: str | None) -> None:
    """Print the paper's tables for several results.json of `unigame evaluate`.

    They have paired differences to one of the models, and are written as Markdown, CSV and LaTeX.
    """
    require_writable(output, "--output")
    from unigame.reports.compare import compare as compared
    from unigame.reports.records import read_record
    from unigame.reports.tables import print_comparison, write_comparison

    names = None if labels is None else [name.strip() for name in labels.split(",")]
    _check(records, baseline, names)
    found = [read_record(path) for path in records]
    comparison = compared(found, names or _labels(found), baseline - 1)
    print_comparison(comparison)
    write_comparison(comparison, found, output)
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
