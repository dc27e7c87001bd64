"""A warning that a person sees: on standard error, and in the log of whoever collects one."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def warn(text: str) -> None:
    """One line on standard error, and in the log of whoever collects one."""
    logger.warning("unigame: warning: %s", text)
