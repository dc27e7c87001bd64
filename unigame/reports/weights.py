"""Which weights lie in a folder, by SHA-256: records name their model by the same digest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from unigame.errors import UserError

_WEIGHTS = ("*.safetensors", "*.bin")
_REMEMBERED = 1 << 26  # smaller files are read in a moment


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the weight files of a checkpoint or adapter folder, and their names.

    Raises:
        UserError: the folder holds no weights.
    """
    files = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))
    if not files:
        raise UserError(f"{folder} holds no weights ({' or '.join(_WEIGHTS)})")
    lines = [f"{file.name} {file_sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; a large one is read once and remembered by place, size and time."""
    status = path.resolve().stat()
    if status.st_size < _REMEMBERED:
        return _digest(path)
    memory = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "unigame"
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    note = memory / f"sha256-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    try:
        if len(known := note.read_text()) == 64:
            return known
    except OSError:
        pass  # not known yet, or nowhere to remember it
    digest = _digest(path)
    try:
        memory.mkdir(parents=True, exist_ok=True)
        note.write_text(digest)
    except OSError:
        pass
    return digest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
