"""The ``unigame`` command: ``main`` reads the arguments, one module runs each command."""

from unigame.cli.main import build_parser, main

__all__ = ["build_parser", "main"]
