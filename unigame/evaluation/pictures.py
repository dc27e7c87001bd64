"""From an image cell, in any form that data sets store one, to a picture when it is needed."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from unigame.data.images import (
    CORRUPT,
    DECODE_ERRORS,
    MISSING,
    CorruptImage,
    decode_image,
    read_file,
    upright_rgb,
)

_LONGEST_PATH = 1024


@dataclass(frozen=True)
class LazyCell:
    """An image cell that stays in its table on disk until it is asked for."""

    load: Callable[[], Any]


@dataclass(frozen=True)
class StoredPicture:
    """A picture that is read and decoded when it is called; see :func:`picture`."""

    cell: Any
    root: Path | None

    def __call__(self) -> Image.Image:
        """Decode it: upright RGB.

        Raises:
            CorruptImage: an empty cell, a path to no file, or bytes that are no picture.
        """
        content = self._content()
        if isinstance(content, bytes):
            return decode_image(content)
        try:
            return upright_rgb(content)
        except DECODE_ERRORS as error:
            raise CorruptImage("", CORRUPT, str(error)) from error

    def key(self) -> str:
        """The same for equal files, without decoding: questions may share a picture.

        Raises:
            CorruptImage: an empty cell or a path to no file.
        """
        content = self._content()
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        return _pixels_key(content)

    def _content(self) -> bytes | Image.Image:
        cell = self.cell.load() if isinstance(self.cell, LazyCell) else self.cell
        if isinstance(cell, Mapping):
            embedded = cell.get("bytes")
            cell = embedded if embedded is not None else cell.get("path")
        if isinstance(cell, bytes | Image.Image):
            return cell
        if isinstance(cell, Path):
            return read_file(cell)
        if isinstance(cell, str) and cell.strip():
            return _bytes_of(cell.strip(), self.root)
        raise CorruptImage("", MISSING, "empty image cell")


def content_key(shown: Callable[[], Image.Image]) -> str:
    """A digest of what a picture shows; of one that cannot be read, why not."""
    try:
        return shown.key() if isinstance(shown, StoredPicture) else _pixels_key(shown())
    except CorruptImage as error:
        return error.reason


def _pixels_key(image: Image.Image) -> str:
    digest = hashlib.sha256(f"{image.mode} {image.size} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def picture(cell: Any, root: Path | None = None) -> StoredPicture:
    """A function that decodes the picture of one cell; nothing is read before it is called.

    Args:
        cell: from a row of ``read_rows``: an embedded picture (``{"bytes", "path"}`` or bytes), a
            path relative to ``root`` or ``root/images``, a base64 string, a PIL image, or None.
        root: where relative paths start; None: only embedded pictures can be had.
    """
    return StoredPicture(cell, root)


def _bytes_of(text: str, root: Path | None) -> bytes:
    """The picture that a string names (a path) or is (base64)."""
    if root is not None and len(text) <= _LONGEST_PATH:
        for path in (root / text, root / "images" / text):
            if _is_file(path):
                return read_file(path)
    # A picture of less than 64 base64 letters (48 bytes) does not exist, a file name does.
    if len(text) > 64:
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            pass
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    raise CorruptImage("", MISSING, f"no file {shown!r} in {root or 'a data set of the Hub'}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system takes: a small picture in base64
        return False
