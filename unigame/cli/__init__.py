"""The ``unigame`` command: ``main`` runs it, one module holds each command."""

from unigame.cli.main import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, main

__all__ = ["EXIT_INTERRUPTED", "EXIT_OK", "EXIT_USER_ERROR", "main"]
