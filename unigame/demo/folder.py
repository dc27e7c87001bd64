"""The folder of a demo: where a run of it works, and what becomes of what was there before.

A demo works in the folder itself, or, where a finished one lies, in ``rerun/`` inside it, and takes
the old one's place when all of its arms are there. ``INCOMPLETE`` marks a demo that goes on where
it stopped. Imports nothing heavy.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from unigame.errors import UserError

MARKER, SETTINGS, RERUN, _REPLACED = "INCOMPLETE", "config.json", "rerun", ".replaced"
ARM_DONE = "DONE"  # in the folder of a finished arm
# What a demo writes: a folder that has one of these and no settings of a demo is something else.
_WRITTEN = ("arms", "adapter", "benchmarks")
# What an earlier version wrote: one table of all arms, in a form of its own.
_EARLIER = ("results.json", "table.md", "table.csv")


def choose_folder(output: Path, config: dict[str, Any], overwrite: bool = False) -> Path:
    """Where a demo of these settings works. Touches nothing.

    Args:
        output: what the user named.
        config: the demo's settings, as JSON gives them back.
        overwrite: whether what is there may go, whatever it is.

    Raises:
        UserError: there is a demo of other settings or of an earlier version, or something else.
    """
    for folder in (output / RERUN, output):
        if _goes_on(folder, config):
            return folder
    known = [folder for folder in (output, output / RERUN) if (folder / SETTINGS).exists()]
    if not overwrite:
        if (output / _EARLIER[0]).exists():
            raise UserError(
                f"{str(output / _EARLIER[0])!r} is no part of a demo (an earlier version wrote its "
                "table there); give another --output, or --overwrite to replace it"
            )
        for folder in known:
            _refuse_other(folder, config)
        other = [name for name in _WRITTEN if (output / name).exists()]
        if other and not known:
            raise UserError(
                f"{str(output)!r} holds {other[0]}, and no demo's {SETTINGS}; give another "
                "--output, or --overwrite to replace it"
            )
    return output / RERUN if known else output


def begin(folder: Path, output: Path, config: dict[str, Any]) -> bool:
    """Make the folder ready; whether an interrupted demo goes on in it.

    Args:
        folder: where the demo works, as ``choose_folder`` says.
        output: what the user named.
        config: the demo's settings.
    """
    if _goes_on(folder, config):
        return True
    # The user's own folder may be called the same; what is theirs in it stays.
    _remove(folder if folder == output / RERUN else folder / "arms")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(config, indent=2))
    (folder / MARKER).touch()
    return False


def finish(folder: Path, output: Path) -> None:
    """A finished demo takes its place; only now does an older one go."""
    (folder / MARKER).unlink()
    for name in _EARLIER:
        (output / name).unlink(missing_ok=True)
    if folder == output:
        return
    (output / MARKER).unlink(missing_ok=True)
    old = output / _REPLACED
    old.mkdir(exist_ok=True)
    for new in sorted(folder.iterdir()):
        place = output / new.name
        if place.exists():
            _remove(old / new.name)
            place.rename(old / new.name)
        new.rename(place)
    _remove(old)
    _remove(folder)


def finished_arms(output: Path) -> tuple[Path, list[str]]:
    """Where the last demo worked in ``output``, and the arms that it has finished."""
    folder = output / RERUN if is_interrupted(output / RERUN) else output
    return folder, sorted(file.parent.name for file in folder.glob(f"arms/*/{ARM_DONE}"))


def is_interrupted(folder: Path) -> bool:
    """Whether a demo was begun here and not finished."""
    return (folder / MARKER).exists()


def _goes_on(folder: Path, config: dict[str, Any]) -> bool:
    """Whether an interrupted demo of these settings can go on here."""
    earlier = (folder / _EARLIER[0]).exists()
    return is_interrupted(folder) and not earlier and _settings_of(folder) == config


def _settings_of(folder: Path) -> Any:
    """The settings of the demo in a folder; None where they cannot be read."""
    try:
        return json.loads((folder / SETTINGS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _refuse_other(folder: Path, config: dict[str, Any]) -> None:
    from unigame.evaluation.record import differences  # imports torch

    found = _settings_of(folder)
    if found == config:
        return
    what = "something else than a demo's settings"
    if isinstance(found, dict):
        what = f"a demo with other settings: {'; '.join(differences(found, config))}"
    raise UserError(
        f"{str(folder / SETTINGS)!r} is of {what}; give another --output, or --overwrite to "
        "replace it"
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
