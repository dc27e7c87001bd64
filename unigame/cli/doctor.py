"""``unigame doctor``: is the installation sound, what hardware is there, and what fits on it?"""

from __future__ import annotations

from pathlib import Path

import click

from unigame.cli.app import command, option
from unigame.cli.endings import next_step
from unigame.errors import UserError


@command("check the installation, the devices, and what fits in memory")
@option("--model", help="also check this checkpoint (folder or Hub id)")
@option("--recipe", help="also check this recipe (file or shipped name)")
@option("--game", metavar="RECIPE", help="instead, measure what this recipe's game can win")
@option("--pictures", type=click.IntRange(min=8), default=96, help="of its data, with --game")
@option("--json", metavar="FILE", help="file for the figures of --game")
def doctor(
    model: str | None, recipe: str | None, game: str | None, pictures: int, json: str | None
) -> int:
    """Check the installation, the devices, and what fits in memory.

    With --game, measure on the recipe's model and data what a long run could win, in minutes.

    Exit code 1: something that every command needs is broken.
    """
    if game:
        from unigame.doctor.game import game_report

        next_step(*game_report(game, pictures, Path(json) if json else None))
        return 0
    if json:
        raise UserError(f"--json {json}: figures are written with --game RECIPE alone")
    from unigame.doctor.report import report

    sound, advice = report(model=model, recipe=recipe)
    next_step(*advice)
    return 0 if sound else 1
