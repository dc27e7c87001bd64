"""The files of a method in a checkpoint: weights as safetensors, the rest without pickles.

    <method>_state.pt (<method>_state_<rank>.pt)    what moves, on one process

It holds tensors and plain values, and is read with ``weights_only=True``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unigame.errors import UserError
from unigame.system.json_text import text_lines

STATE_VERSION = 2


def state_file(method: str, rank: int, world_size: int) -> str:
    """Name of one process's part of a method's state."""
    return f"{method}_state.pt" if world_size == 1 else f"{method}_state_{rank}.pt"


def saved_by(folder: Path, method: str) -> int:
    """How many processes wrote a method's state in a checkpoint; 0: there is none."""
    if (folder / state_file(method, 0, 1)).is_file():
        return 1
    count = 0
    while (folder / state_file(method, count, 2)).is_file():
        count += 1
    return count


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values."""
    torch.save({"version": STATE_VERSION, **state}, path)


def load_state(path: Path) -> dict[str, Any]:
    """Read what ``save_state`` wrote, without executing any code from the file.

    Raises:
        UserError: if the file is missing, empty, damaged, or of another version.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing, so the run cannot go on; give a whole checkpoint")
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
            f"{path} is not a method's state of version {STATE_VERSION}; give a checkpoint written "
            "by this version of unigame"
        )
    return state


def save_weights(path: Path, module: nn.Module) -> None:
    """Write a module's weights; one without any writes no file."""
    state = {name: value.detach().cpu().contiguous() for name, value in weights_of(module).items()}
    if state:
        save_file(state, path)


def read_weights(path: Path, module: nn.Module, advice: str) -> dict[str, Tensor]:
    """The saved weights of a module of this kind and size, without loading them.

    Args:
        path: the file.
        module: whose weights they should be.
        advice: what to do where they are not.

    Raises:
        UserError: the file is missing, damaged, or of another kind or size.
    """
    wanted = weights_of(module)
    if not wanted:
        return {}
    if not path.is_file():
        raise UserError(f"{path} is missing, so it cannot be restored; give a whole checkpoint")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); give an undamaged checkpoint") from error
    if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in wanted.items()}:
        raise UserError(f"{path} holds other weights than the settings describe; {advice}")
    return found


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state."""
    return {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}


# ---- files of lines beside a run -----------------------------------------------------------------
def append_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a file of JSON lines; the half line of a run that was killed stays for itself."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as opened:
        if opened.tell() and not _ends_with_newline(file):
            opened.write(b"\n")
        for row in rows:
            opened.write(json.dumps(row).encode() + b"\n")


def lines_of_all(own: Path, folder: str | Path, pattern: str) -> Iterator[str]:
    """Lines of files that processes of a run keep beside it, those of this process's file first.

    So where two of them say different things of one key, the first is this process's own.

    Args:
        own: this process's file; one of the same name in ``folder`` is its, too.
        folder: of the run.
        pattern: of all processes' files.
    """
    found = sorted(Path(folder).glob(pattern))
    for file in sorted(found, key=lambda file: file.name != own.name):
        yield from text_lines(file.read_text(encoding="utf-8", errors="replace"))


def _ends_with_newline(file: Path) -> bool:
    with file.open("rb") as opened:
        opened.seek(-1, 2)
        return opened.read(1) == b"\n"
