"""A warning that a person sees: on standard error, and in the log of whoever collects one."""

from __future__ import annotations

import logging
from weakref import WeakSet

logger = logging.getLogger(__name__)


class Heard:
    """Every warning since it was made, once and in order; for the report of a run."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}
        _LISTENERS.add(self)

    @property
    def lines(self) -> tuple[str, ...]:
        """The warnings so far."""
        return tuple(self._lines)

    def hear(self, text: str) -> None:
        """Keep one; a run that warns without end keeps the first ones."""
        if len(self._lines) < MOST_HEARD:
            self._lines[text] = None


MOST_HEARD = 50
_LISTENERS: WeakSet[Heard] = WeakSet()


def warn(text: str) -> None:
    """One line on standard error, and in the log of whoever collects one."""
    logger.warning("unigame: warning: %s", text)
    for listener in list(_LISTENERS):
        listener.hear(text)
