"""The members of a plain tar: where each one's bytes lie, and whether the tar was read to its end.

`datasets` reads tars as streams, copies their pictures into its cache, and stops at the first block
that is no header, as ``tarfile`` does, so that a flipped bit in the middle of a shard hides the
rest of it. Here a tar has to end as tars end: with blocks of zeros, and nothing after them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from unigame.data.paths import is_mac_file
from unigame.errors import UserError

USUAL_END = 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE
"""Two blocks of zeros, and zeros up to a whole record, are the end of a usual tar."""

_CHUNK = 1 << 20


class Member(NamedTuple):
    """One file in a tar: these bytes of it; ``unusable`` says why they cannot be had."""

    name: str
    offset: int
    size: int
    unusable: str = ""


def read_members(tar_file: Path, long_ends: list[int]) -> Iterator[Member]:
    """The files in a tar, in order; folders and the files of macOS are passed over.

    Args:
        tar_file: The tar.
        long_ends: Gets the number of zeros at its end, where they are far more than is usual: a
            download that stopped early looks like it.

    Raises:
        UserError: It is no plain tar, it is damaged, or it was cut; the message says how many bytes
            were not read.
    """
    try:
        with tarfile.open(tar_file, "r:") as tar:
            known: dict[str, Member] = {}  # a hard link names a member that came before it
            for info in tar:
                if not info.isdir() and not is_mac_file(info.name):
                    known[info.name] = member = _member(info, known)
                    yield member
            if (zeros := _end_of(tar, tar_file)) > USUAL_END:
                long_ends.append(zeros)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{tar_file} cannot be read: {error}") from None
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise UserError(
            f"{tar_file} is not a plain, complete tar ({error}); unpack compressed shards "
            "(gunzip), download cut ones again"
        ) from None


def _member(info: tarfile.TarInfo, known: dict[str, Member]) -> Member:
    if info.islnk():
        target = known.get(info.linkname)
        if target is None:
            return Member(info.name, 0, 0, "link to a file that is not in the tar")
        return target._replace(name=info.name)
    if info.issparse():
        return Member(info.name, 0, 0, "sparse file")
    if not info.isreg():
        return Member(info.name, 0, 0, "link or device, not a file")
    return Member(info.name, info.offset_data, info.size)


def _end_of(tar: tarfile.TarFile, tar_file: Path) -> int:
    """Number of zeros from the last member to the end of the file.

    Raises:
        UserError: There are none, or something else is there.
    """
    length = tar_file.stat().st_size
    left = length - tar.offset
    damaged = (
        f"{tar_file} is damaged: {left} of its {length} bytes were not read, from byte "
        f"{tar.offset} on; download it again, or leave it out of path"
    )
    if left < tarfile.BLOCKSIZE:
        if left > 0:
            raise UserError(damaged)
        raise UserError(
            f"{tar_file} is not a plain, complete tar (it stops at byte {length} without the zeros "
            "that end a tar); download it again, or close its writer"
        )
    with tar_file.open("rb") as file:
        file.seek(tar.offset)
        while chunk := file.read(_CHUNK):
            if chunk.strip(b"\0"):
                raise UserError(damaged)
    return left
