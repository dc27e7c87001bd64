"""Unequal passes through sharded modules: who has none to run goes along with an idle one.

A layer whose weights are shared out over processes is gathered by all of them together, so all must
run it equally often. A step of training does. What is done beside it does not: one process has
three pictures to describe, another has none; replies end at different lengths. Within ``InStep``
each process says before every pass that it wants one, and at the end, until nobody wants any, that
it wants none. Who does not want what is run next runs an idle pass of its own. Passes with a
gradient must not be among them: their backward gathers layers, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pass:
    """A kind of pass.

    Attributes:
        module: what it runs, exactly once.
        idle: runs the smallest one.
    """

    module: nn.Module
    idle: Callable[[], object]


class InStep:
    """Called, it gives a context that all processes must enter alike.

    Args:
        passes: the kinds, in the order in which they are run where several are wanted.
        total: the sum over processes.
    """

    def __init__(self, passes: Sequence[Pass], total: Callable[[Tensor], Tensor]) -> None:
        self._passes, self._total = passes, total
        self._inside = self._idling = False
        for kind, one in enumerate(passes):
            one.module.register_forward_pre_hook(partial(self._before, kind))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within: processes may run unequal passes without gradient."""
        self._inside = True
        try:
            yield
        except Exception:
            self._go_along(None)  # the others wait for this process all the same
            raise
        else:
            self._go_along(None)
        finally:
            self._inside = False

    def _before(self, kind: int, module: nn.Module, args: Any) -> None:
        if self._inside and not self._idling:
            self._go_along(kind)

    def _go_along(self, wanted: int | None) -> None:
        """Idle passes until what this process wants is next."""
        while (chosen := self._next(wanted)) != wanted:
            assert chosen is not None, "this process wants one"
            self._idling = True
            try:
                with torch.no_grad():
                    self._passes[chosen].idle()
            finally:
                self._idling = False

    def _next(self, wanted: int | None) -> int | None:
        """The first kind that any process wants; None: nobody wants any."""
        wishes = torch.zeros(len(self._passes))
        if wanted is not None:
            wishes[wanted] = 1
        for kind, number in enumerate(self._total(wishes).tolist()):
            if number:
                return kind
        return None
