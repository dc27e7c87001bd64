"""``unigame demo``: the game, its controls and the methods beside it, on the embedded default."""

from unigame.demo.run import run_demo

__all__ = ["run_demo"]
