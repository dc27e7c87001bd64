"""The picture files of ``unigame generate``, which several processes may write at one time.

A file is put in its place whole: a process that is killed leaves none that is cut. What a command
has written is told from what lay there before by the file itself, so nothing is deleted first, and
processes need not speak to each other.
"""

from __future__ import annotations

import glob
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unigame.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 4
"""Pictures drawn at once: enough to keep a GPU busy, small enough for a 7B model in 24 GB."""
LEAST_PATIENCE = 2.0
"""Seconds without a new picture before the first process helps another."""


class PictureFiles:
    """Where the pictures of one command go.

    Args:
        paths: one for each picture, in order.
        count: processes that draw them.
    """

    def __init__(self, paths: Sequence[Path], count: int = 1) -> None:
        self.paths = list(paths)
        self._before = [_identity(path) for path in self.paths]
        at_once = max(1, min(BATCH, math.ceil(len(self.paths) / count)))
        numbers = range(len(self.paths))
        self.parts = [list(numbers[start : start + at_once]) for start in numbers[::at_once]]

    def missing(self, part: Sequence[int]) -> list[int]:
        """The pictures of a part that nobody has written since the command began."""
        return [number for number in part if _identity(self.paths[number]) == self._before[number]]

    def to_draw(
        self, rank: int, count: int, ended: Callable[[], Collection[int]] = tuple
    ) -> Iterator[list[int]]:
        """The parts that one process draws: its share; the first one then what others lack.

        It draws the rest of those that have ended. For the others it waits, as long as pictures
        come; where none came for twice the time of a part, it draws one itself. Two processes may
        so draw the same part, once: by its seed a picture is the same.

        Args:
            rank: of this process.
            count: processes in all.
            ended: the ranks that are known to draw no more.
        """
        patience = LEAST_PATIENCE
        for part in self.parts[rank::count]:
            if left := self.missing(part):
                begun = time.monotonic()
                yield left
                patience = max(patience, 2 * (time.monotonic() - begun))
        lacking, since = -1, 0.0
        while rank == 0 and (rest := self._rest(count)):
            if (number := sum(len(left) for _, left in rest)) != lacking:
                lacking, since = number, time.monotonic()
            gone = [left for owner, left in rest if owner in ended()]
            if gone or time.monotonic() - since > patience:
                yield (gone or [left for _, left in rest])[-1]
            else:
                time.sleep(0.05)

    def _rest(self, count: int) -> list[tuple[int, list[int]]]:
        """Of each part that is not whole, whose it is and what it lacks."""
        parts = ((number % count, self.missing(part)) for number, part in enumerate(self.parts))
        return [(owner, left) for owner, left in parts if left]

    def write(self, number: int, image_3SS: Tensor) -> None:
        """Put one picture, (3, S, S) in [0, 1], in its place."""
        from PIL import Image

        path = self.paths[number]
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels_SS3 = image_3SS.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            kind = Image.registered_extensions()[path.suffix.lower()]
            Image.fromarray(pixels_SS3.cpu().numpy()).save(partial, kind)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a killed process had begun."""
        for path in self.paths:
            for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
                partial.unlink(missing_ok=True)


def picture_paths(output: Path, number: int) -> list[Path]:
    """``name.png``, or ``name-1.png`` and so on.

    Raises:
        UserError: such a file cannot hold a picture.
    """
    from PIL import Image

    suffixes = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE
    }
    if output.is_dir() or output.suffix.lower() not in suffixes:
        raise UserError(f"--output {output} is not a picture file; name one such as runs/cat.png")
    if number == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{i + 1}") for i in range(number)]


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from the one that takes its place; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
