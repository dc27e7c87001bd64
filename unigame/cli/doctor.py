"""``unigame doctor``: is the installation sound, what hardware is there, and what fits on it?"""

from __future__ import annotations

from unigame.cli.app import command, option
from unigame.cli.endings import next_step


@command("check the installation, the devices, and what fits in memory")
@option("--model", help="also check this checkpoint (folder or Hub id)")
@option("--recipe", help="also check this recipe (file or shipped name)")
def doctor(model: str | None, recipe: str | None) -> int:
    """Check the installation, the devices, and what fits in memory.

    Exit code 1: something that every command needs is broken.
    """
    from unigame.doctor.report import report

    sound, advice = report(model=model, recipe=recipe)
    next_step(*advice)
    return 0 if sound else 1
