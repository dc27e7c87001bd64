"""``unigame demo``: the game and its controls on the embedded default."""

from unigame.demo.run import run_demo

__all__ = ["run_demo"]
