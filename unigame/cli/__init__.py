"""The ``unigame`` command: ``main`` reads the arguments, one module runs each command."""

from unigame.cli.main import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, build_parser, main

__all__ = ["EXIT_INTERRUPTED", "EXIT_OK", "EXIT_USER_ERROR", "build_parser", "main"]
