"""May a run go on from this checkpoint? Every check that is made before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unigame.backbones.base import Backbone
from unigame.backbones.common.adapter_files import ADAPTER_WEIGHTS, read_adapter
from unigame.errors import UserError
from unigame.methods import files
from unigame.methods.base import Method
from unigame.system.say import warn
from unigame.training import checkpoint, identity
from unigame.training.config import UniGameConfig
from unigame.training.manifest import MANIFEST_FILE, damage


def require_whole(
    folder: str, args: UniGameConfig, backbone: Backbone, methods: Sequence[Method]
) -> None:
    """Refuse a checkpoint that lacks a file, is damaged, or does not fit a method.

    Raises:
        UserError: naming the file.
    """
    rank, world_size = args.process_index, args.world_size
    before = checkpoint.saved_by(folder)
    if before not in (0, world_size):
        # All read all: who was not there reads the first one's place.
        rank, world_size = rank % before, before
        _require_regroupable(methods, before, args)
    checkpoint.require_complete(
        folder,
        weights=backbone.saved_files,
        extra=[name for method in methods for name in method.files(rank, world_size)],
        rank=rank,
        world_size=world_size,
    )
    if args.should_save:  # once for all processes that share the folder
        require_undamaged(folder, trust=args.resume_anyway)
    for method in methods:  # could not go on even if it were asked to
        method.check_weights(Path(folder))


def _require_regroupable(methods: Sequence[Method], before: int, args: UniGameConfig) -> None:
    """A checkpoint of another number of processes: say what goes on, or that it cannot.

    Raises:
        UserError: a method does not say how.
    """
    for method in methods:
        if method.state_dict() and type(method).regrouped is Method.regrouped:
            method.regrouped([{}] * before, args.process_index, args.world_size)
    if args.should_save:
        warn(
            f"the checkpoint is of {before} processes and goes on with {args.world_size}: the same "
            "weights, optimizers, schedules and rows; dropout and other random draws are not those "
            "of the first run"
        )


def require_undamaged(folder: str | Path, *, trust: bool) -> None:
    """Refuse a checkpoint whose files are not those of its manifest.

    Args:
        folder: the checkpoint.
        trust: take one without a manifest as it is, and say so.

    Raises:
        UserError: naming the first such file.
    """
    found = damage(Path(folder))
    if found is None:
        return
    name, what = found
    path = Path(folder) / name
    if name != MANIFEST_FILE:
        detail = _reading_it(Path(folder), name)
        raise UserError(
            f"{path} {what}{f' ({detail})' if detail else ''}; resume from another checkpoint, or "
            "with resume_from_checkpoint=true from the newest whole one"
        )
    if trust:
        warn(f"{path} {what}: going on without knowing that all is whole")
        return
    raise UserError(
        f"{path} {what}: {folder} comes from an older version of unigame, or its writing was cut; "
        "resume from another one, or add resume_anyway=true if you trust it"
    )


def require_same_run(folder: str, args: UniGameConfig, record: dict[str, Any] | None) -> None:
    """Refuse the checkpoint of a run with other settings, model or data, unless it is asked for.

    Raises:
        UserError: naming what differs.
    """
    found = identity.differences(folder, args, record)
    if not found:
        return
    if args.resume_anyway:
        warn(f"going on from another run's {folder}: {identity.said(found)}")
        return
    raise UserError(
        f"{folder} belongs to another run than the one that is asked for ({identity.said(found)}); "
        "resume with that run's values, start anew in another output_dir, or add "
        "resume_anyway=true to go on with the new ones"
    )


def _reading_it(folder: Path, name: str) -> str:
    """What reading a damaged file says; "" where it says nothing that helps."""
    try:
        if name == ADAPTER_WEIGHTS:
            read_adapter(folder)
        elif "_state" in name and name.endswith(".pt") and not name.startswith("rng"):
            files.load_state(folder / name)
    except UserError as error:
        return str(error).partition(";")[0]
    return ""
