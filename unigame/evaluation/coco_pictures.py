"""COCO's pictures in a folder, found by file name or by image id, and never a mask instead.

A photo is named ``COCO_val2014_000000000042.jpg``, or ``000000000042.jpg`` in ``val2017``. COCO's
annotations come with pictures of the same number (``annotations/panoptic_val2014``,
``stuffthingmaps``), which show regions in flat colours.
"""

from __future__ import annotations

import filecmp
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unigame.data.images import IMAGE_SUFFIXES
from unigame.data.paths import is_mac_file
from unigame.errors import UserError

_COCO_NAME = re.compile(r"(?:COCO_([a-z]+\d{4})_)?0*(\d+)")
_NO_PHOTOS = re.compile(
    r"annotation|panoptic|stuff|thing|mask|segment|semseg|sem_seg|label|depth|pixelmap",
    re.IGNORECASE,
)


class CocoPictures:
    """The pictures of a folder by file name or by COCO's image id.

    Args:
        root: the folder; two folders deep is looked.
        subset: where pictures of several splits have one number, this one goes first: such as
            ``val2014``.

    Raises:
        UserError: there are none.
    """

    def __init__(self, root: Path, subset: str | None = None) -> None:
        self._subset = subset
        self._by_name: dict[str, list[Path]] = {}
        self._by_id: dict[int, list[Path]] = {}
        for folder in _folders(root, depth=2):
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in IMAGE_SUFFIXES and not is_mac_file(path.name):
                    self._by_name.setdefault(path.name, []).append(path)
                    if named := _COCO_NAME.fullmatch(path.stem):
                        self._by_id.setdefault(int(named[2]), []).append(path)
        if not self._by_name:
            raise UserError(
                f"{root} holds no pictures; put COCO's there, such as "
                "val2014/COCO_val2014_000000000042.jpg (a link to the folder will do)"
            )

    def by_id(self, image_id: Any, subset: str | None = None) -> Path | None:
        """The picture with this id: of the subset if it is there, else of any split.

        Raises:
            UserError: two different pictures could be meant.
        """
        if not isinstance(image_id, int):
            return None
        subset = subset or self._subset
        ranks = {path: _rank(path, subset) for path in self._by_id.get(image_id, [])}
        best = [path for path, rank in ranks.items() if rank == min(ranks.values())]
        return _the_one(best, f"image id {image_id}") if best else None

    def by_name(self, name: Any) -> Path | None:
        """The picture with this file name, or with the COCO id in it, in whatever folder it is.

        Raises:
            UserError: two different pictures could be meant.
        """
        if not isinstance(name, str):
            return None
        if same := self._by_name.get(Path(name).name):
            return _the_one(same, f"picture {Path(name).name}")
        named = _COCO_NAME.fullmatch(Path(name).stem)
        return self.by_id(int(named[2]), named[1]) if named else None


def _rank(path: Path, subset: str | None) -> int:
    """Which go first: the exact name, those in the subset's folder, photos, the rest."""
    named = _COCO_NAME.fullmatch(path.stem)
    of = named[1] if named else ""
    is_photo = path.suffix.lower() in (".jpg", ".jpeg")
    if is_photo and subset and of == subset:
        return 0
    if of is None and path.parent.name == subset:
        return 1
    return 2 if is_photo else 3


def _the_one(candidates: list[Path], what: str) -> Path:
    """The only candidate, where links to one file and equal files count as one.

    Raises:
        UserError: there are several.
    """
    first = candidates[0]
    for other in candidates[1:]:
        if not filecmp.cmp(first, other, shallow=False):
            raise UserError(
                f"{what} may be {first} or {other}, which differ; keep one of them, or name the "
                "folder that holds the right one with --data-root"
            )
    return first


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """The folder, and those within it that may hold photos; links are followed, never in a circle.

    Folders of masks are left out: their pictures have the numbers of the photos.
    """
    yield root
    if depth:
        for path in sorted(root.iterdir()):
            if path.is_dir() and not _NO_PHOTOS.search(path.name) and not is_mac_file(path.name):
                yield from _folders(path, depth - 1)
