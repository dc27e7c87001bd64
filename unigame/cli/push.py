"""``unigame push``: a run's adapter or merged model on the Hub, with a filled card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unigame.cli import options
from unigame.cli.app import argument, command, option
from unigame.cli.endings import kept, next_step
from unigame.errors import UserError
from unigame.system.writable import require_writable


@command("publish a run's adapter, or its merged model, on the Hub with a filled card")
@argument("run", "output_dir of a finished run, or a checkpoint of it", type=options.PATH)
@argument("hub_id", "OWNER/NAME on the Hub; made if it is not there")
@option("--merged", is_flag=True, help="base and adapter as one model that transformers loads")
@option("--private", is_flag=True, help="make the repository private; one that exists stays as is")
@option(
    "--dry-run",
    type=options.PATH,
    metavar="DIR",
    help="write the folder that would be uploaded to DIR, offline, and send nothing",
)
@option("--base", metavar="OWNER/NAME", help="the base's Hub id, where it was loaded from a folder")
@option(
    "--evaluation",
    "evaluations",
    type=options.PATH,
    multiple=True,
    metavar="RESULTS",
    help="further results.json for the card, the base's first; those in RUN are found",
)
@option("--license", metavar="ID", help="of these weights, as the Hub names it: apache-2.0")
@option("--data-license", metavar="TEXT", help="of the training data, one sentence")
@options.dtype
@options.device
def push(
    run: Path,
    hub_id: str,
    merged: bool,
    private: bool,
    dry_run: Path | None,
    base: str | None,
    evaluations: Sequence[Path],
    license: str | None,
    data_license: str | None,
    dtype: str,
    device: str | None,
) -> None:
    """Upload what others need to use a run: weights in safetensors, and a model card.

    The card names base, data, settings, results with intervals, licences as far as known, and how
    plain PEFT or transformers loads it. Pictures of the training data are not sent.
    """
    if device is not None and not merged:
        raise UserError(
            f"--device {device}: only --merged computes anything; add it, or leave this out"
        )
    if dry_run is not None:
        require_writable(dry_run, "--dry-run")
    from unigame.publish.card import Wishes
    from unigame.publish.push import push as publish
    from unigame.system.console import make_console

    console = make_console()
    with kept(lambda: "Stopped; run the same command again."):
        done = publish(
            run,
            hub_id,
            merged=merged,
            base=base,
            private=private,
            dry_run=dry_run,
            evaluations=evaluations,
            wishes=Wishes(license, data_license),
            dtype=dtype,
            device=device,
            say=lambda line: console.print(f"  {line}"),
        )
    for place in done.passed_over:
        console.print(f"left out of the card: {place}, which is of other weights")
    for line in done.twice:
        console.print(f"left out of the card: {line}")
    for name, size in done.files:
        console.print(f"{_size(size):>10}  {name}")
    total = _size(sum(size for _, size in done.files))
    if dry_run is not None:
        console.print(f"{total} in {len(done.files)} files would be sent to {hub_id}: {dry_run}")
        next_step(f"read the card: {dry_run / 'README.md'}", "send it: the same without --dry-run")
        return
    console.print(f"Pushed {total} in {len(done.files)} files.")
    next_step(f"look at it: {done.url}")


def _size(count: int) -> str:
    """Bytes for people, in powers of 1000 as the Hub counts."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
