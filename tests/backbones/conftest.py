"""The families that the contract test runs on. A new backbone adds its tiny checkpoint here."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import shared_tiny_janus
from tests.tiny_bagel import shared_tiny_bagel, shared_wide_bagel
from tests.tiny_chameleon import shared_tiny_chameleon
from tests.tiny_composed import shared_llm_dit, shared_vlm_unet
from tests.tiny_emu3 import shared_tiny_emu3
from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone

FAMILIES: dict[str, Callable[[], Path]] = {
    "bagel": shared_tiny_bagel,
    "bagel_wide": shared_wide_bagel,
    "chameleon": shared_tiny_chameleon,
    "composed_llm_dit": shared_llm_dit,
    "composed_sd": shared_vlm_unet,
    "emu3": shared_tiny_emu3,
    "janus": shared_tiny_janus,
}


@pytest.fixture(params=sorted(FAMILIES))
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return FAMILIES[request.param]()


@functools.cache
def loaded(checkpoint: Path) -> Backbone:
    """Loaded once; tests get copies, which costs a tenth of loading."""
    return load_backbone(checkpoint, device="cpu")


@pytest.fixture
def backbone(checkpoint: Path) -> Backbone:
    """A fresh backbone of each family, without LoRA, in evaluation mode, on the CPU."""
    return copy.deepcopy(loaded(checkpoint))
