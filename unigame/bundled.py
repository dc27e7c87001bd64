"""What ships with the package: small unified models, and an image-text model that verifies them."""

from __future__ import annotations

from pathlib import Path

from unigame.errors import UserError

BUNDLED = "janus-nano"
"""The model that is meant where none is named."""
BUNDLED_MODELS = (BUNDLED, "bagel-nano")
_FOLDERS = {
    BUNDLED: "janus_nano",
    "bagel-nano": "bagel_nano",
    "janus-nano-clip": "janus_nano_clip",
}


def bundled_place(name: str) -> str:
    """Where a bundled checkpoint lies in the repository."""
    return f"unigame/synthetic/{_FOLDERS[name]}"


def bundled_folder(name: str) -> Path | None:
    """Where a bundled checkpoint lies; None for any other name.

    Raises:
        UserError: it is not part of this installation.
    """
    if name not in _FOLDERS:
        return None
    from importlib import resources  # every command imports this module, few look for a folder

    folder = Path(str(resources.files("unigame"))) / "synthetic" / _FOLDERS[name]
    if not folder.is_dir():
        raise UserError(
            f"the bundled model {name!r} is not part of this installation; reinstall unigame from "
            "its wheel or a full clone"
        )
    return folder
