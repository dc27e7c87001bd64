"""Parts of large files, of which the last few stay open.

On a network disk opening a file costs a round trip or more, as much as reading a picture in it. A
file that stays open is the one that was opened: a shard that is replaced on the disk while a run
reads it is read as it was.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from io import FileIO

MOST = 8
"""Files that a thread keeps open; ``reading_order: shards`` reads four at a time."""

_mine = threading.local()


def read_slice(path: str, offset: int, size: int) -> bytes:
    """``size`` bytes of a file from ``offset``, or as many as there are.

    Raises:
        OSError: there is no such file.
    """
    if not hasattr(os, "pread"):  # Windows: a place in the file would be shared between workers
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    number = _file(path).fileno()
    parts = []
    while size > 0 and (part := os.pread(number, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)


def _file(path: str) -> FileIO:
    """The file, open; of this thread alone, so that none closes what another one reads."""
    files: OrderedDict[str, FileIO] | None = getattr(_mine, "files", None)
    if files is None:
        files = _mine.files = OrderedDict()
    file = files.pop(path, None)
    if file is None:
        while len(files) >= MOST:
            files.popitem(last=False)[1].close()
        file = FileIO(path)
    files[path] = file
    return file
