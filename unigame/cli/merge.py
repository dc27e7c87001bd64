"""``unigame merge``: a run's adapter and its base as one plain checkpoint."""

from __future__ import annotations

from pathlib import Path

from unigame.cli import options
from unigame.cli.app import argument, command, option
from unigame.cli.endings import kept, next_step
from unigame.system.writable import require_writable


@command("write a run's adapter and its base as one plain checkpoint")
@argument("run", "output_dir of a run, or a checkpoint of it: a folder with an adapter")
@argument("output", "folder to write; new or empty", type=options.PATH)
@option("--model", help="the base, where it is no longer where the adapter says")
@options.dtype
@options.device
def merge(run: str, output: Path, model: str | None, dtype: str, device: str | None) -> None:
    """Write a checkpoint in the base's own layout: transformers loads it if it loads the base.

    The base must have the weights that the adapter was made for, where it says which these are.
    The checkpoint is loaded again and its outputs are compared with the adapter's before this says
    done. A composed model is written in the form of its own folder, its language model merged.
    """
    require_writable(output, "output")
    from unigame.backbones.merging import PROBES
    from unigame.backbones.merging import merge as write
    from unigame.system.console import make_console

    console = make_console()
    with kept(lambda: f"Stopped; {output} was not written. Run the same command again."):
        done = write(
            run,
            output,
            model=model,
            dtype=dtype,
            device=device,
            say=lambda line: console.print(f"  {line}"),
        )
    drawn = ""
    if done.pixel_gap is not None:
        drawn = f", a drawing differs by {100 * done.pixel_gap:.2g} % of a pixel's range"
    console.print(
        f"Merged {run} into {output}, {done.dtype}: losses differ by {done.loss_gap:.2g} at most, "
        f"{done.answers} of {PROBES} answers are the same{drawn}."
    )
    next_step(
        f'unigame answer PICTURE "a question" --model {output}',
        f"unigame evaluate --model {output}",
    )
