"""Can a folder be written to? Asked before hours of work, by writing to it."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from unigame.errors import UserError

PROBE_BYTES = 1 << 20  # an adapter of the bundled model; a disk that cannot take it is full
_FIXES = {
    errno.ENOSPC: "free some space, or name a folder on another disk",
    errno.EDQUOT: "free some of your quota, or name a folder on another disk",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.EROFS: "that disk is read-only; name a folder on another one",
}


def require_writable(folder: str | Path, name: str) -> None:
    """Write a file into ``folder`` and remove it again, and the folders made for it.

    Args:
        folder: need not exist yet.
        name: the setting that names it, for the message.

    Raises:
        UserError: it is a file, belongs to someone else, lies on a full or read-only disk, ...
    """
    import tempfile  # every start of the command line reads this file

    path = Path(folder).expanduser()
    if os.path.isfile(path):  # unlike Path.is_file, takes any name
        raise UserError(f"{name}={str(folder)!r} is a file; name a folder")
    made: list[Path] = []
    try:
        for part in (*reversed(path.parents), path):
            if not part.exists():
                part.mkdir(exist_ok=True)
                made.append(part)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"\0" * PROBE_BYTES)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise UserError(
            f"{name}={str(folder)!r} cannot be written to: {error.strerror or error}; "
            f"{_FIXES.get(error.errno or 0, 'name a folder that can')}"
        ) from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{name}={str(folder)!r} is no name of a folder: {error}") from error
    finally:
        for part in reversed(made):
            with suppress(OSError):  # someone else has put something there meanwhile
                part.rmdir()
