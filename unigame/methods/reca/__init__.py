"""RecA: the model draws each picture again from what it reads of it (arXiv 2509.07295)."""

from unigame.methods.reca.method import RecA
from unigame.methods.reca.settings import RecASettings
from unigame.methods.reca.templates import TEMPLATES

__all__ = ["TEMPLATES", "RecA", "RecASettings"]
