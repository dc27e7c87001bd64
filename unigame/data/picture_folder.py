"""Pictures without any text, for what learns from pictures alone."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from unigame.data.dataset import RecordDataset, Row
from unigame.data.images import IMAGE_SUFFIXES
from unigame.data.paths import is_mac_file
from unigame.data.records import SkippedRow
from unigame.errors import UserError
from unigame.system.json_text import printable


class PictureFolder(RecordDataset):
    """Every picture of a folder, as a record without texts.

    Args:
        path: A folder, searched downward, or a glob of pictures (``photos/*.jpg``). Other files
            are passed over.
        verify, limit: See :class:`RecordDataset`.

    Raises:
        UserError: Nothing is there, or it holds no picture.
    """

    picture_only = True

    def __init__(
        self, path: str | Path, *, verify: str = "exists", limit: int | None = None
    ) -> None:
        folder = Path(path).expanduser()
        if folder.is_dir():
            files, root = (file for file in sorted(folder.rglob("*"))), folder
        else:
            found = sorted(glob.glob(str(folder), recursive=True))
            if not found:
                raise UserError(
                    f"path: {path} names no folder and no file; check the spelling, or give a glob "
                    "such as photos/*.jpg"
                )
            files, root = (Path(file) for file in found), Path(".")
        super().__init__(_rows(files, root), where=str(path), root=root, verify=verify, limit=limit)


def _rows(files: Iterator[Path], root: Path) -> Iterator[Row | SkippedRow]:
    for file in files:
        name = file.relative_to(root) if file.is_relative_to(root) else file
        picture = file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        if picture and not is_mac_file(name.as_posix()):
            yield Row(id=printable(name.as_posix()), image=file.absolute())
