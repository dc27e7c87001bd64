"""``unigame report``: what a run changed, drew and cost, as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unigame.cli import options
from unigame.cli.app import argument, command, option
from unigame.cli.endings import next_step
from unigame.errors import UserError
from unigame.system.writable import require_writable


@command("write what a run changed, drew and cost as one HTML page")
@argument(
    "runs",
    "output_dir of a run, a demo's folder, or an evaluation's",
    type=options.PATH,
    nargs=-1,
    required=True,
    metavar="RUN...",
)
@option(
    "--output", type=options.PATH, help="file to write; report.html in the first RUN if not given"
)
def report(runs: Sequence[Path], output: Path | None) -> None:
    """Write one self-contained page: verdict, tables, pictures, dynamics, settings.

    Evaluations of several runs stand side by side, with differences to the first one's. An
    evaluation of other weights than those in its run's folder and checkpoints is left out.
    """
    if output is not None and (output.is_dir() or output.suffix.lower() not in (".html", ".htm")):
        raise UserError(f"--output {output} is no page; name a file such as runs/report.html")
    if twice := [str(run) for run in runs if list(runs).count(run) > 1]:
        raise UserError(f"{twice[0]} is named twice; give each run once")
    if output is not None:
        require_writable(output.parent, "--output")
    from unigame.reports.page.write import write_report

    path = write_report(runs, output)
    from unigame.reports.page.progress import newest_checkpoint, progress_of
    from unigame.system.console import make_console

    for run in runs:
        if (checkpoint := newest_checkpoint(run)) is not None:
            make_console().print(f"{run} is {progress_of(checkpoint)}.", markup=False)
    next_step(f"open {path} in a browser")
