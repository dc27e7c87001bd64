"""What ships with the package: a small unified model, and an image-text model that verifies it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from unigame.errors import UserError

BUNDLED = "janus-nano"
_FOLDERS = {BUNDLED: "janus_nano", "janus-nano-clip": "janus_nano_clip"}


def bundled_folder(name: str) -> Path | None:
    """Where a bundled checkpoint lies; None for any other name.

    Raises:
        UserError: it is not part of this installation.
    """
    if name not in _FOLDERS:
        return None
    folder = Path(str(resources.files("unigame"))) / "synthetic" / _FOLDERS[name]
    if not folder.is_dir():
        raise UserError(
            f"the bundled model {name!r} is not part of this installation; reinstall unigame from "
            "its wheel or a full clone"
        )
    return folder
