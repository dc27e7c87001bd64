"""UniGame: post-train a unified multimodal model by letting it play its own adversary.

The public names load on first use, so that ``import unigame`` and ``unigame --help`` stay instant
while torch and transformers take their seconds only when something needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unigame.backbones import load_backbone
    from unigame.backbones.base import Backbone, BackboneFacts
    from unigame.errors import UserError
    from unigame.methods.base import Method
    from unigame.methods.imagine import Imagine
    from unigame.methods.reca import RecA, RecASettings
    from unigame.methods.rows import Rows
    from unigame.methods.selfplay import (  # type: ignore[no-redef]
        HardSample,
        HardSampleBuffer,
        Perturber,
        SelfPlay,
        SelfPlaySettings,
        challenge,
        mine,
        perturber_step,
    )
    from unigame.methods.sft import SFT
    from unigame.methods.verify import Verify
    from unigame.synthetic import SyntheticDataset
    from unigame.training.config import UniGameConfig
    from unigame.training.trainer import UniGameTrainer

__version__ = "0.1.0"

_HOME = {
    "Backbone": "unigame.backbones.base",
    "BackboneFacts": "unigame.backbones.base",
    "HardSample": "unigame.methods.selfplay",
    "HardSampleBuffer": "unigame.methods.selfplay",
    "Imagine": "unigame.methods.imagine",
    "Method": "unigame.methods.base",
    "Perturber": "unigame.methods.selfplay",
    "RecA": "unigame.methods.reca",
    "RecASettings": "unigame.methods.reca",
    "Rows": "unigame.methods.rows",
    "SFT": "unigame.methods.sft",
    "SelfPlay": "unigame.methods.selfplay",
    "SelfPlaySettings": "unigame.methods.selfplay",
    "SyntheticDataset": "unigame.synthetic",
    "UniGameConfig": "unigame.training.config",
    "UniGameTrainer": "unigame.training.trainer",
    "UserError": "unigame.errors",
    "Verify": "unigame.methods.verify",
    "challenge": "unigame.methods.selfplay",
    "load_backbone": "unigame.backbones",
    "mine": "unigame.methods.selfplay",
    "perturber_step": "unigame.methods.selfplay",
}

__all__ = [
    "Backbone",
    "BackboneFacts",
    "HardSample",
    "HardSampleBuffer",
    "Imagine",
    "Method",
    "Perturber",
    "RecA",
    "RecASettings",
    "Rows",
    "SFT",
    "SelfPlay",
    "SelfPlaySettings",
    "SyntheticDataset",
    "UniGameConfig",
    "UniGameTrainer",
    "UserError",
    "Verify",
    "__version__",
    "challenge",
    "load_backbone",
    "mine",
    "perturber_step",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home module the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'unigame' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
