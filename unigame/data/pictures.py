"""Where the picture of a row lies (in a file, a table, a tar, the row), and how it is read."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from PIL import Image

from unigame.data.images import (
    CORRUPT,
    DECODE_ERRORS,
    IMAGE_SUFFIXES,
    MISSING,
    CorruptImage,
    decode_image,
    read_file,
    upright_rgb,
)
from unigame.data.open_files import read_slice
from unigame.errors import UserError

_LONGEST_PATH = 1024
_LONGEST_SHOWN = 200


class TableCell(NamedTuple):
    """A picture that stays in its table on disk: row ``number`` of a table with one column.

    Where the column holds lists, ``place`` is that of the picture in its list.
    """

    table: Any
    number: int
    place: int | None = None

    def load(self) -> Any:
        """The cell: bytes, or bytes and path."""
        cell = next(iter(self.table[self.number].values()))
        return cell if self.place is None else cell[self.place]


class TarSlice(NamedTuple):
    """A picture in a tar: these bytes of it."""

    shard: str
    offset: int
    size: int

    def load(self) -> bytes:
        """The picture's bytes; safe in any number of threads and workers."""
        return read_slice(self.shard, self.offset, self.size)


@dataclass(frozen=True)
class StoredPicture:
    """A picture that is read and decoded when it is called.

    Args:
        cell: of a row: bytes, ``{"bytes", "path"}``, a path relative to ``root`` or
            ``root/images``, base64, a PIL image, a cell of a table or tar, or None.
        root: where relative paths start; None: paths are of another machine.
    """

    cell: Any
    root: Path | None = None

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

    def check(self) -> None:
        """Look whether there is a picture, without reading files, tables or tars.

        Raises:
            CorruptImage: an empty cell, a path to no file, or an empty file.
            UserError: a file that may not be read: it would end the run at its batch.
        """
        if isinstance(self.cell, TableCell):  # empty cells of a table are None
            return
        if isinstance(self.cell, TarSlice):
            path, size = self.cell.shard, self.cell.size
        elif path := _file_of(self.cell, self.root):
            if not os.access(path, os.R_OK):
                raise closed_file(path)
            size = os.path.getsize(path)
        else:
            self._content()
            return
        if not size:
            raise CorruptImage("", CORRUPT, f"empty file in {path}")

    def _content(self) -> bytes | Image.Image:
        cell = self.cell
        if isinstance(cell, TableCell | TarSlice):
            cell = cell.load()
        if isinstance(cell, Mapping):
            cell = unwrapped(cell)
        if isinstance(cell, bytes | Image.Image):
            return cell
        if isinstance(cell, Path):
            return read_file(cell)
        if not isinstance(cell, str) or not cell.strip():
            raise CorruptImage("", MISSING, "empty image cell")
        path = _file_of(cell, self.root)
        return read_file(path) if path else _from_base64(cell.strip(), self.root)


def picture(cell: Any, root: Path | None = None) -> StoredPicture:
    """The picture of one cell; nothing is read before it is called."""
    return StoredPicture(cell, root)


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


def _file_of(cell: Any, root: Path | None) -> str:
    """The file that a cell names, if it is there."""
    if isinstance(cell, Path):
        return str(cell) if os.path.isfile(cell) else ""
    if not isinstance(cell, str) or root is None or len(cell) > _LONGEST_PATH:
        return ""
    bare = cell.strip()
    if bare.startswith("file://"):
        bare = url2pathname(urlsplit(bare).path)
    for name in dict.fromkeys((cell, bare, bare.replace("\\", "/"))):  # as Windows writes paths
        for path in (os.path.join(root, name), os.path.join(root, "images", name)):
            if os.path.isfile(path):
                return path
    return ""


def unwrapped(cell: Mapping[str, Any]) -> Any:
    """The bytes of a picture that is given as an object, else its path or link; None: it has none.

    Empty bytes are a picture that was lost, and no reason to look at the path.
    """
    return next((cell[key] for key in ("bytes", "path", "url") if cell.get(key) is not None), None)


def looks_like_picture(cell: Any) -> bool:
    """Whether a cell holds a picture or names one by its suffix; of a list, its first."""
    if isinstance(cell, list):
        return bool(cell) and looks_like_picture(cell[0])
    if isinstance(cell, Mapping):
        cell = unwrapped(cell)
    if isinstance(cell, str):
        return Path(cell.strip()).suffix.lower() in IMAGE_SUFFIXES
    return isinstance(cell, TableCell | bytes | Path)


def closed_file(path: Any) -> UserError:
    """The error for a picture's file that is there and may not be read."""
    return UserError(
        f"the picture {str(path)!r} may not be read: its permissions are for others; chmod it, or "
        "leave its row out"
    )


def _from_base64(text: str, root: Path | None) -> bytes:
    text = re.sub(r"^data:[^,]{0,100};base64,", "", text)
    whole = "".join(text.split()) if "\n" in text else text  # as mail has it
    # A picture of less than 64 base64 letters (48 bytes) does not exist, a file name does.
    if len(whole) > 64:
        try:
            return base64.b64decode(whole, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise CorruptImage("", MISSING, _not_found(text, root))


def _not_found(name: str, root: Path | None) -> str:
    """Where a picture was looked for."""
    shown = name if len(name) <= _LONGEST_SHOWN else f"{name[: _LONGEST_SHOWN - 3]}..."
    if re.match(r"https?://", name):
        return f"{shown!r} is a link; download the pictures first"
    if root is None:
        return f"no file {shown!r} in a data set of the Hub"
    if any(letter in str(root) for letter in "*?[") and not root.exists():
        return (
            f"no file {shown!r}: the tables of {str(root)!r} lie in several folders; write whole "
            "paths, or name each table for itself"
        )
    tried, folder = os.path.abspath(os.path.join(root, shown)), os.path.abspath(root)
    other = "" if os.path.isabs(shown) else f", nor in {os.path.join(folder, 'images')!r}"
    return f"no file {tried!r}{other}"
