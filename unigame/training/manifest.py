"""A checkpoint's list of its files with checksums, by which a whole one is told from a cut one.

``manifest.json`` is written last, into a folder that is renamed only afterwards. So a folder of a
checkpoint's name that has no manifest was not written by this trainer, and one whose files do not
match it was damaged later.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST_FILE = "manifest.json"
VERSION = 1


def write_manifest(folder: Path) -> None:
    """List every file of ``folder`` with size and SHA-256, and bring all of it to the disk."""
    files = {name: _entry(folder / name, to_disk=True) for name in _files(folder)}
    path = folder / MANIFEST_FILE
    with path.open("w", encoding="utf-8") as out:
        json.dump({"version": VERSION, "files": files}, out, indent=1, sort_keys=True)
        out.flush()
        os.fsync(out.fileno())


def damage(folder: Path) -> tuple[str, str] | None:
    """The first file that is not as the manifest says, and what is wrong; None for a whole folder.

    Files beside those of the manifest are left alone: an editor or a copy may have put them there.
    """
    try:
        listed = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        expected: dict[str, Any] = {str(name): dict(entry) for name, entry in listed.items()}
    except FileNotFoundError:
        return MANIFEST_FILE, "is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return MANIFEST_FILE, "cannot be read"
    for name, entry in sorted(expected.items()):
        path = folder / name
        if not path.is_file():
            return name, "is missing"
        try:
            found = _entry(path)
        except OSError as error:
            return name, f"cannot be read ({error.strerror})"
        if found["bytes"] == 0 != entry.get("bytes"):
            return name, "is empty"
        if found != entry:
            return name, "is damaged: its checksum is not that of manifest.json"
    return None


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in found if path.name != MANIFEST_FILE)


def _entry(path: Path, *, to_disk: bool = False) -> dict[str, Any]:
    with path.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
        if to_disk:
            os.fsync(data.fileno())
        return {"sha256": digest, "bytes": os.fstat(data.fileno()).st_size}
