"""The weights of an original Janus folder: what is there, without reading it, and one at a time.

Files are mapped into memory, not read, so a 7B checkpoint of 15 GB can be looked through and
converted with little more memory than one output file takes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unigame.backbones.model_files import weight_names
from unigame.errors import UserError

_SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
_PICKLES = ("pytorch_model.bin.index.json", "pytorch_model.bin")
WEIGHT_FILES = (*_SAFETENSORS, *_PICKLES)
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class OriginalTensor:
    """One tensor on disk.

    Attributes:
        shape: its shape.
        dtype: its type, which a mapped file knows without being read.
        read: gives its values; a view of the mapped file where there is one.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def open_weights(folder: Path) -> dict[str, OriginalTensor]:
    """Every tensor of a folder, by the authors' name, in the order of the files.

    Raises:
        UserError: files are missing, cut off, or pickles that hold anything but plain tensors.
    """
    found: dict[str, OriginalTensor] = {}
    for file in _weight_files(folder):
        opened = _safetensors(file) if file.suffix == ".safetensors" else _pickle(file)
        if not opened:
            raise UserError(f"weight file {str(file)!r} holds no tensors; download it again")
        for name in opened:
            if name in found:
                raise UserError(
                    f"tensor {name!r} is in two weight files of {str(folder)!r}; the folder mixes "
                    "checkpoints: download it again into an empty one"
                )
        found |= opened
    return found


def _weight_files(folder: Path) -> list[Path]:
    name = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        raise UserError(
            f"folder {str(folder)!r} has no weights ({', '.join(WEIGHT_FILES)}); check that the "
            "download was complete"
        )
    names = [name]
    if name.endswith(".index.json"):
        names = weight_names(folder / name)
    for name in names:
        if not (folder / name).is_file():
            raise UserError(
                f"weight file {str(folder / name)!r} is missing; check that the download was "
                "complete"
            )
    return [folder / name for name in names]


def _safetensors(file: Path) -> dict[str, OriginalTensor]:
    try:
        opened = safe_open(file, framework="pt")
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"weight file {str(file)!r} is unreadable ({error}); it may be cut off or a Git LFS "
            "pointer: download it again"
        ) from error
    found = {}
    for name, piece in slices.items():
        kind = piece.get_dtype()
        if kind not in _DTYPES:
            raise UserError(f"tensor {name!r} of {str(file)!r} has type {kind}, which no Janus has")
        found[name] = OriginalTensor(
            tuple(piece.get_shape()), _DTYPES[kind], partial(opened.get_tensor, name)
        )
    return found


def _pickle(file: Path) -> dict[str, OriginalTensor]:
    """A PyTorch file. ``weights_only`` refuses everything that could run code."""
    try:
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # The format before PyTorch 1.6 cannot be mapped.
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weight file {str(file)!r} is no file of plain tensors, and loading anything else "
            "could run code; it may also be a Git LFS pointer: download it again from its authors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"weight file {str(file)!r} is unreadable ({reason}); it may be cut off: download it "
            "again"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"weight file {str(file)!r} holds no table of tensors; download it again")
    found = {}
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"weight file {str(file)!r} holds {name!r}, a {type(value).__name__} and no "
                "tensor; it is no Janus checkpoint"
            )
        if not value.is_floating_point():
            raise UserError(
                f"tensor {name!r} of {str(file)!r} has type {value.dtype}, which no Janus has"
            )
        found[name] = OriginalTensor(tuple(value.shape), value.dtype, value.detach)
    return found
