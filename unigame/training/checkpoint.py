"""What a checkpoint holds beside the Trainer's own files, and the check that it is all there.

adapter_model.safetensors, adapter_config.json   LoRA, in PEFT's format
perturber.safetensors                            what a method trained, here self-play's C
<method>_state.pt (<method>_state_<rank>.pt)     what moves in it, see ``methods/files``
unigame_config.json, run.json                    whose run it is, see ``identity``
manifest.json                                    checksums of all, see ``manifest``
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from unigame.errors import UserError

SETTINGS_FILE = "unigame_config.json"
TRAINER_STATE_FILE = "trainer_state.json"
OPTIMIZER_FILE, SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def require_complete(
    folder: str | Path,
    *,
    weights: Sequence[str] = ADAPTER_FILES,
    extra: Sequence[str] = (),
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Check, before anything is loaded, that a checkpoint can be resumed exactly.

    Args:
        folder: the checkpoint.
        weights: what the backbone saved of itself.
        extra: the methods' files that must be there beside the Trainer's and the adapter's.
        rank: this process's number.
        world_size: number of processes.

    Raises:
        UserError: naming the first missing or empty file and its likely cause.
    """
    folder = Path(folder)
    require_folder(folder)
    rng = rng_file(rank, world_size)
    for name in (*weights, TRAINER_STATE_FILE, OPTIMIZER_FILE, SCHEDULER_FILE, rng, *extra):
        path = folder / name
        if path.is_file() and path.stat().st_size > 0:
            continue
        what = "is empty" if path.is_file() else "is missing"
        raise UserError(
            f"{path} {what}, so the run cannot be resumed exactly; {_likely_cause(name)}"
        )


def rng_file(rank: int, world_size: int) -> str:
    """Where one process keeps the global generators."""
    return "rng_state.pth" if world_size == 1 else f"rng_state_{rank}.pth"


def saved_by(folder: str | Path) -> int:
    """How many processes wrote a checkpoint; 0: it does not say."""
    folder = Path(folder)
    if (folder / rng_file(0, 1)).is_file():
        return 1
    return len(list(folder.glob("rng_state_*.pth")))


def require_folder(folder: str | Path) -> None:
    """Refuse a checkpoint that is no folder, or that is the folder of a whole run.

    Raises:
        UserError: naming it, and the checkpoint that may have been meant.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"resume_from_checkpoint={str(folder)!r} is no folder; give a checkpoint-N")
    numbers = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    steps = [int(number) for number in numbers if number.isascii() and number.isdigit()]
    if steps:  # a checkpoint holds no other one
        newest = folder / f"checkpoint-{max(steps)}"
        raise UserError(
            f"resume_from_checkpoint={str(folder)!r} is the folder of a run, not a checkpoint; "
            f"give {newest}, or true: the newest whole one of output_dir"
        )


def require_steps_left(folder: str | Path, planned: int) -> None:
    """Refuse to train past the steps that were asked for; -1 asks for none in particular.

    Raises:
        UserError: the checkpoint has them all.
    """
    done = steps_done(folder)
    if done >= planned > 0:
        raise UserError(
            f"{folder} already has {done} of {planned} steps; raise max_steps (or "
            "num_train_epochs) to train on"
        )


def steps_done(folder: str | Path) -> int:
    """Optimizer steps that the checkpoint has behind it."""
    path = Path(folder) / TRAINER_STATE_FILE
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read; give an undamaged checkpoint") from error


def _likely_cause(name: str) -> str:
    if "_state" in name and not name.startswith(("trainer", "rng")) or "perturber" in name:
        return (
            "it was saved with other methods, or before methods were listed; resume with the saved "
            "run's methods, or start a new run from its adapter"
        )
    if name.startswith(("optimizer", "scheduler", "rng_state")):
        return "it was saved with save_only_model=True; start a new run from its adapter instead"
    return "give a checkpoint-N folder written by this trainer"
