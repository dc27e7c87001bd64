"""What a checkpoint holds beside the Trainer's own files, and the check that it is all there.

    adapter_model.safetensors, adapter_config.json   player U, in PEFT's format
    perturber.safetensors                            player C
    game_state.pt (game_state_<rank>.pt)             C's optimizer and schedule, buffer, generators
    unigame_config.json, run.json                    whose run it is, see ``identity``
    manifest.json                                    checksums of all, see ``manifest``

Nothing is a pickle of a model: ``game_state*.pt`` holds tensors and plain values, and is read with
``weights_only=True``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from unigame.errors import UserError

PERTURBER_FILE = "perturber.safetensors"
SETTINGS_FILE = "unigame_config.json"
TRAINER_STATE_FILE = "trainer_state.json"
OPTIMIZER_FILE, SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
STATE_VERSION = 1


def game_state_file(rank: int, world_size: int) -> str:
    """Name of this rank's part of the game's state."""
    return "game_state.pt" if world_size == 1 else f"game_state_{rank}.pt"


def save_perturber(folder: str | Path, perturber: nn.Module) -> None:
    """Write C's weights; a perturber without any (no attack) writes no file."""
    state = {name: value.detach().cpu().contiguous() for name, value in _state(perturber).items()}
    if state:
        save_file(state, Path(folder) / PERTURBER_FILE)


def load_perturber(folder: str | Path, perturber: nn.Module) -> None:
    """Read C's weights back into a perturber of the same kind and size.

    Raises:
        UserError: if the file is missing, or holds a perturber of another kind or size.
    """
    found = read_perturber(folder, perturber)
    if found:
        perturber.load_state_dict(found)


def read_perturber(folder: str | Path, perturber: nn.Module) -> dict[str, torch.Tensor]:
    """The saved weights of a perturber of this kind and size, without loading them.

    Raises:
        UserError: as :func:`load_perturber`.
    """
    wanted = _state(perturber)
    if not wanted:
        return {}
    path = Path(folder) / PERTURBER_FILE
    if not path.is_file():
        raise UserError(
            f"{path} is missing, so the perturber cannot be restored; give a whole checkpoint"
        )
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); give an undamaged checkpoint") from error
    if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in wanted.items()}:
        raise UserError(
            f"{path} holds another perturber than the settings describe; resume with the "
            "perturbation, perturber_width and perturber_depth of the saved run"
        )
    return found


def save_game_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values."""
    torch.save({"version": STATE_VERSION, **state}, path)


def load_game_state(path: str | Path) -> dict[str, Any]:
    """Read what ``save_game_state`` wrote, without executing any code from the file.

    Raises:
        UserError: if the file is missing, empty, damaged, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing, so the game cannot go on; give a whole checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        # Its own words advise to switch the protection off.
        raise UserError(
            f"{path} cannot be read: it is damaged, or holds more than tensors and plain values "
            f"({type(error).__name__}); give an undamaged checkpoint"
        ) from error
    if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
        raise UserError(
            f"{path} is not a game state of version {STATE_VERSION}; give a checkpoint written by "
            "this version of unigame"
        )
    return state


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
        extra: the game's files that must be there beside the Trainer's and the adapter's.
        rank: this process's number.
        world_size: number of processes.

    Raises:
        UserError: naming the first missing or empty file and its likely cause.
    """
    folder = Path(folder)
    require_folder(folder)
    rng = "rng_state.pth" if world_size == 1 else f"rng_state_{rank}.pth"
    for name in (*weights, TRAINER_STATE_FILE, OPTIMIZER_FILE, SCHEDULER_FILE, rng, *extra):
        path = folder / name
        if path.is_file() and path.stat().st_size > 0:
            continue
        what = "is empty" if path.is_file() else "is missing"
        raise UserError(
            f"{path} {what}, so the run cannot be resumed exactly; {_likely_cause(name)}"
        )


def require_folder(folder: str | Path) -> None:
    """Refuse a checkpoint that is no folder.

    Raises:
        UserError: naming it.
    """
    if not Path(folder).is_dir():
        raise UserError(f"resume_from_checkpoint={str(folder)!r} is no folder; give a checkpoint-N")


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
    if name.startswith(("game_state", "perturber")):
        return (
            "it was saved with challenge_every=0 or by another number of processes; resume with "
            "the saved run's settings, or start a new run from its adapter"
        )
    if name.startswith(("optimizer", "scheduler", "rng_state")):
        return "it was saved with save_only_model=True; start a new run from its adapter instead"
    return "give a checkpoint-N folder written by this trainer"


def has_weights(perturber: nn.Module) -> bool:
    """True when ``save_perturber`` writes a file for it."""
    return bool(_state(perturber))


def _state(perturber: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in perturber.state_dict().items() if isinstance(v, torch.Tensor)}
