"""So many rows at once, and fewer when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

from unigame.system.say import warn

R = TypeVar("R")
T = TypeVar("T")


class AtOnce:
    """Rows at once; halved for the rest of the run when memory did not suffice.

    Args:
        value: rows at once, to begin with.
        setting: what gives that number; then a line says that it was too large.
        halves: False where processes compute together: who tried again would leave the others
            waiting. What runs out of memory is raised.
    """

    def __init__(self, value: int, setting: str = "", *, halves: bool = True) -> None:
        self.value, self.halves = value, halves
        self._setting, self._said, self._tried = setting, value, value

    def each(self, rows: Sequence[R], work: Callable[[Sequence[R]], list[T]]) -> list[T]:
        """What ``work`` gives for each row, in parts of this size; one too large is tried again.

        Raises:
            Exception: that of ``work``, where it is not about memory or a single row does not fit.
        """
        done: list[T] = []
        while len(done) < len(rows):
            part = rows[len(done) : len(done) + self.value]
            try:
                done += work(part)
                self._say()
                continue
            except (RuntimeError, MemoryError) as error:
                if not (self.halves and len(part) > 1 and is_out_of_memory(error)):
                    raise
            # Only here, when the exception and the tensors in its frames are gone, is memory free.
            self._tried = len(part)
            self.value = min(self.value, len(part) // 2)  # work may have halved it, too
            free_memory()
        return done

    def _say(self) -> None:
        """Only when it is known what does fit, and again if that is less."""
        if self._setting and self.value < self._said:
            self._said = self.value
            warn(
                f"{self._tried} at once do not fit into memory: {self.value} from now on, as with "
                f"{self._setting}={self.value}"
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine ran out of memory, rather than something being wrong."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def free_memory() -> None:
    """Give back what no tensor uses any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
