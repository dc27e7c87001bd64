"""The families that the contract test runs on. A new backbone adds its tiny checkpoint here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import shared_tiny_janus
from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone

FAMILIES: dict[str, Callable[[], Path]] = {"janus": shared_tiny_janus}


@pytest.fixture(params=sorted(FAMILIES))
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return FAMILIES[request.param]()


@pytest.fixture
def backbone(checkpoint: Path) -> Backbone:
    """A fresh backbone of each family, without LoRA, in evaluation mode, on the CPU."""
    return load_backbone(checkpoint, device="cpu")
