"""Writing a checkpoint so that its name stands for a whole one, and a full disk for one line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from unigame.errors import UserError
from unigame.training.manifest import write_manifest


def publish(staged: Path, final: Path) -> None:
    """Give a checkpoint that is written its manifest and then its name, in one rename."""
    write_manifest(staged)
    if final.exists():  # a resumed run comes by here again
        os.replace(final, staged.parent / "replaced")
    os.replace(staged, final)
    shutil.rmtree(staged.parent, ignore_errors=True)


@contextmanager
def onto_disk(folder: str | Path) -> Iterator[None]:
    """Within: a disk that takes no more ends in one line.

    Raises:
        UserError: naming the folder and the disk's complaint.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in text:
            raise
        why = getattr(error, "strerror", None) or text.splitlines()[0]
        raise UserError(
            f"{folder} cannot be written ({why}); free some space or give another output_dir, and "
            "resume from the newest checkpoint"
        ) from error
