"""``unigame doctor``: is the installation sound, what hardware is there, and what fits on it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from unigame.cli.app import argument, command, option
from unigame.cli.endings import next_step
from unigame.errors import UserError


@command(
    "check the installation, the devices, and what fits in memory",
    context_settings={"ignore_unknown_options": True},  # they are the recipe's settings
)
@option(
    "--model",
    help="also check this checkpoint (folder or Hub id); with --game: in the place of the recipe's",
)
@option("--recipe", help="also check this recipe (file or shipped name); not with --game")
@option("--game", metavar="RECIPE", help="instead, measure what this recipe's game can win")
@option("--data", help="file, folder or Hub id in the place of the recipe's data")
@option("--pictures", type=click.IntRange(min=8), help="of the data, with --game (default: 96)")
@option("--json", metavar="FILE", help="file for the figures of --game")
@argument(
    "overrides",
    "settings of that recipe to change, as for unigame train: --quantization nf4",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="[--key value]...",
)
def doctor(
    model: str | None,
    recipe: str | None,
    game: str | None,
    data: str | None,
    pictures: int | None,
    json: str | None,
    overrides: tuple[str, ...],
) -> int:
    """Check the installation, the devices, and what fits in memory.

    With --game, measure on the recipe's model and data, or on yours, what a long run could win;
    it says early about how long that takes.

    Exit code 1: something that every command needs is broken.
    """
    if game:
        return _play(game, model, recipe, data, pictures, Path(json) if json else None, overrides)
    if overrides and recipe is None:
        raise UserError(
            f"{overrides[0]}: is no option of unigame doctor, and there is no --recipe or --game "
            "whose setting it could be; see unigame doctor --help"
        )
    if data is not None and recipe is None:
        raise UserError(f"--data {data}: in the place of which recipe's? give --recipe or --game")
    for name, value in (("--pictures", pictures), ("--json", json)):
        if value is not None:
            raise UserError(f"{name} {value}: belongs to --game RECIPE, which is not given")
    from unigame.doctor.report import report

    words = [*overrides, *([f"--data={data}"] if data is not None else [])]
    sound, advice = report(model=model, recipe=recipe, overrides=words)
    next_step(*advice)
    return 0 if sound else 1


def _play(
    game: str,
    model: str | None,
    recipe: str | None,
    data: str | None,
    pictures: int | None,
    file: Path | None,
    overrides: Sequence[str],
) -> int:
    """``--model`` and ``--data`` are the overrides of that name of ``unigame train``."""
    if recipe is not None:
        raise UserError(
            f"--recipe {recipe} beside --game {game}: --game names the recipe; leave one out"
        )
    from unigame.doctor.game import game_report

    given = (("model", model), ("data", data))
    words = [f"--{name}={value}" for name, value in given if value is not None]
    next_step(*game_report(game, [*overrides, *words], pictures, file))
    return 0
