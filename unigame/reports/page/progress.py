"""How far a run came, by what lies in its folder: finished, stopped or in progress, or no run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigame.errors import UserError
from unigame.reports.weights import whole_model
from unigame.system.json_text import parse_json

STATE, ADAPTER_WEIGHTS = "trainer_state.json", "adapter_model.safetensors"
ABOUT, DEMO_LOG = "about.json", "log.json"


def newest_checkpoint(folder: Path) -> Path | None:
    """The one that stands for a run without a result; a checkpoint stands for itself."""
    if _step(folder) >= 0 and (folder / STATE).is_file():
        return folder
    latest = latest_checkpoint(folder)
    return None if latest is None or _has_result(folder, latest) else latest


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of most steps, of a finished run too."""
    there = [place for place in folder.glob("checkpoint-*") if (place / STATE).is_file()]
    return max((place for place in there if _step(place) >= 0), key=_step, default=None)


def progress_of(checkpoint: Path) -> str:
    """How far the run of a checkpoint came by it, as the end of a sentence."""
    state = read_file(checkpoint / STATE, {})
    step, planned = (int(state.get(name) or 0) for name in ("global_step", "max_steps"))
    where = f"step {step} of {planned}" if planned else f"step {step}"
    latest = latest_checkpoint(checkpoint.parent)
    if latest is not None and _has_result(checkpoint.parent, latest):
        return f"a checkpoint at {where}"
    if planned and step >= planned:
        return f"at {where} and has no result yet"
    return f"stopped or in progress at {where}"


def steps_of(checkpoint: Path | None, about: Mapping[str, Any]) -> int:
    """Optimizer steps of a checkpoint, or of a run that says itself how many it made."""
    return _step(checkpoint) if checkpoint is not None else int(about.get("steps") or 0)


def read_file(path: Path, default: Any) -> Any:
    """A JSON file of the type of ``default``, which stands for one that is not there.

    Raises:
        UserError: it is damaged, or of another type.
    """
    if not path.is_file():
        return default
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it, or run again") from error
    if not isinstance(found, type(default)):
        raise UserError(f"{path} is no file of a run; remove it, or run again")
    return found


def _has_result(folder: Path, latest: Path) -> bool:
    """Whether a run reached its end, and did not go on from there to its latest checkpoint.

    ``save_state`` says so, or a demo. In Python it is often left out: then the weights that
    ``save_model`` wrote do, beside what ``train`` says of itself at its end.
    """
    if (folder / STATE).is_file():
        return not _goes_on(folder, latest)
    if (folder / DEMO_LOG).is_file():
        return True
    saved = (folder / ADAPTER_WEIGHTS).is_file() or bool(whole_model(folder))
    return saved and int(read_file(folder / ABOUT, {}).get("steps", -1)) >= _step(latest)


def _goes_on(folder: Path, latest: Path) -> bool:
    """Whether a checkpoint is of the finished run here, which was told to make more steps.

    It may as well be of an earlier one. Two runs do not log the same seconds in their first log.
    """
    ended, later = (read_file(place / STATE, {}) for place in (folder, latest))
    if "global_step" not in ended or int(ended["global_step"] or 0) >= _step(latest):
        return False
    ours, others = (
        [repr(entry) for entry in state.get("log_history", []) if "loss" in entry][:1]
        for state in (ended, later)
    )
    return not ours or ours == others


def _step(checkpoint: Path) -> int:
    """The N of ``checkpoint-N``; -1 for another name."""
    number = checkpoint.resolve().name.removeprefix("checkpoint-")
    return int(number) if number.isascii() and number.isdigit() else -1
