"""One run at a time in an ``output_dir``: a lock that the system lets go when its process ends.

A file lock (``fcntl.lockf``) and not a file that merely exists: after ``kill -9`` or a power cut
there is nothing to clean up. Loader workers do not inherit it, so a killed run's last workers do
not keep the folder either.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unigame.errors import UserError
from unigame.system.say import warn
from unigame.training.ranks import agreed

try:
    import fcntl
except ImportError:  # Windows has no such locks: two runs in one folder go unnoticed there
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "_lock"


class FolderLock:
    """Holds ``output_dir`` for this run, from the call that makes it until :meth:`release`.

    Args:
        output_dir: made if it is not there.

    Raises:
        UserError: another living run holds it, or it cannot be written.
    """

    _held: set[str] = set()  # such locks do not tell two runs of one process apart

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir)
        self.path = self.folder / LOCK_FILE
        self._made = False
        self._name = os.path.realpath(self.folder)
        self._file = -1
        if self._name in self._held:
            raise self._refused(_whose(os.getpid()))
        try:
            self._made = not self.folder.exists()  # an error for a name that is too long
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            raise UserError(
                f"output_dir={str(output_dir)!r} cannot be written ({error.strerror}); give a "
                "folder of your own, on a disk with space"
            ) from error
        self._held.add(self._name)

    def _lock(self) -> None:
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            if fcntl is not None:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError) as error:
                    owner = os.read(file, 200).decode(errors="replace").strip()
                    os.close(file)
                    raise self._refused(owner) from error
                except OSError as error:  # some network file systems have no locks
                    warn(f"{self.path}: two runs here would go unnoticed: {error}")
            if self._is_still_there(file):
                break
            os.close(file)  # its owner has just gone and taken the file with it
        self._file = file
        os.ftruncate(file, 0)
        os.write(file, f"{_whose(os.getpid())}\n".encode())

    def _is_still_there(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _refused(self, owner: str) -> UserError:
        return UserError(
            f"output_dir={str(self.folder)!r} is in use by another run ({owner or 'unknown'}); "
            "wait for it, stop it, or give another output_dir"
        )

    def release(self) -> None:
        """Let the next run in. A folder that was made for this run and stayed empty goes too."""
        if self._file < 0:
            return
        self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1
        self._held.discard(self._name)
        if self._made and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


@contextmanager
def locked(output_dir: str | Path, rank: int) -> Iterator[None]:
    """Within: the folder is this run's; the first of its processes holds the lock for all.

    Raises:
        UserError: on every process, see :class:`FolderLock`.
    """
    lock = agreed(lambda: FolderLock(output_dir) if rank == 0 else None)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _whose(pid: int) -> str:
    return f"process {pid} on {socket.gethostname()}"
