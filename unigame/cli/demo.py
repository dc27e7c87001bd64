"""``unigame demo``: the game on the bundled model, and an honest table."""

from __future__ import annotations

import shlex
from pathlib import Path

from unigame.cli import options
from unigame.cli.app import command, option
from unigame.cli.endings import kept, next_step, write_beside
from unigame.system.writable import require_writable


@command("play the game on the bundled model and print an honest before/after table")
@option("--quick", is_flag=True, help="about half of the time")
@option("--seed", type=options.SEED, default=0, help="of data, training and evaluation")
@option("--output", type=options.PATH, default="runs/demo", help="folder to write")
@options.model
@option("--overwrite", is_flag=True, help="replace a demo of other settings in --output")
@option(
    "--workers",
    type=options.POSITIVE,
    help="arms at a time, a process each [default: one a core; one on an accelerator]",
)
def demo(
    quick: bool, seed: int, output: Path, model: str, overwrite: bool, workers: int | None
) -> None:
    """Train SFT, UniGame, its controls and the methods beside it, and evaluate them all.

    Writes table, gallery, curves and adapter.
    """
    require_writable(output, "--output")
    from unigame.demo.kinds import kind_of
    from unigame.demo.run import run_demo

    with kept(lambda: _kept(output)):
        run_demo(
            output=output,
            quick=quick,
            seed=seed,
            model=model,
            overwrite=overwrite,
            workers=workers,
        )
    write_beside(output)
    other = [] if model in options.BUNDLED_MODELS else ["--model", model]
    next_step(
        f"open {output}/report.html in a browser",
        "change one number and train again:  "
        + shlex.join(["unigame", "train", kind_of(model).recipe, "--beta", "0.25", *other]),
    )


def _kept(output: Path) -> str:
    from unigame.demo.folder import finished_arms

    folder, arms = finished_arms(output)
    found = f"kept in {folder}: {', '.join(arms)}" if arms else "no arm was finished yet"
    return f"Stopped; {found}. Run the same command again to go on from there."
