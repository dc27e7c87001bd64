"""Backbones: unified multimodal models behind one contract (``base.py``), chosen by their config.

``load_backbone`` reads a checkpoint's ``config.json``, finds the family by its ``model_type`` among
the built-in ones and the installed entry points (group ``unigame.backbones``), checks the files,
and only then loads weights. ``docs/add-a-backbone.md`` shows how to add a family.

Names load on first use: ``registry`` is read by ``unigame backbones``, which need not wait for
torch and transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unigame.backbones.base import (
        CAPTION_QUESTION,
        Backbone,
        BackboneFacts,
        Drawing,
        VisualStates,
    )
    from unigame.backbones.loading import BackboneLoader, load_backbone
    from unigame.backbones.registry import ENTRY_POINT_GROUP, FamilyInfo, available_backbones

_HOME = {
    "CAPTION_QUESTION": "base",
    "ENTRY_POINT_GROUP": "registry",
    "Backbone": "base",
    "BackboneFacts": "base",
    "BackboneLoader": "loading",
    "Drawing": "base",
    "FamilyInfo": "registry",
    "VisualStates": "base",
    "available_backbones": "registry",
    "load_backbone": "loading",
}

__all__ = [
    "CAPTION_QUESTION",
    "ENTRY_POINT_GROUP",
    "Backbone",
    "BackboneFacts",
    "BackboneLoader",
    "Drawing",
    "FamilyInfo",
    "VisualStates",
    "available_backbones",
    "load_backbone",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home module the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'unigame.backbones' has no attribute {name!r}")
    value = getattr(import_module(f"unigame.backbones.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
