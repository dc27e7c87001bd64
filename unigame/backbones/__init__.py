"""Backbones: unified multimodal models behind one contract (``base.py``), chosen by their config.

``load_backbone`` reads a checkpoint's ``config.json``, finds the family by its ``model_type`` among
the built-in ones and the installed entry points (group ``unigame.backbones``), checks the files,
and only then loads weights. ``docs/add-a-backbone.md`` shows how to add a family.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, cast

import torch
from transformers.utils import logging as hf_logging

from unigame.backbones.base import Backbone, BackboneFacts, Drawing, VisualStates
from unigame.backbones.checkpoint import (
    BUNDLED,
    check_device,
    check_dtype,
    fetch_config,
    find_checkpoint,
    read_model_type,
)
from unigame.backbones.prompts import CAPTION_QUESTION
from unigame.errors import UserError

ENTRY_POINT_GROUP = "unigame.backbones"
_BUILT_IN = {
    "chameleon": "unigame.backbones.chameleon:ChameleonBackbone.from_pretrained",
    "emu3": "unigame.backbones.emu3:Emu3Backbone.from_pretrained",
    "janus": "unigame.backbones.janus:JanusBackbone.from_pretrained",
    "unigame_composed": "unigame.backbones.composed:ComposedBackbone.from_pretrained",
}

__all__ = [
    "CAPTION_QUESTION",
    "ENTRY_POINT_GROUP",
    "Backbone",
    "BackboneFacts",
    "BackboneLoader",
    "Drawing",
    "VisualStates",
    "available_backbones",
    "load_backbone",
]


class BackboneLoader(Protocol):
    """What an entry point names: builds a backbone from a folder or Hub id."""

    def __call__(self, name_or_path: str | Path, *, dtype: str, device: torch.device) -> Backbone:
        """``name_or_path`` is a folder (Path) whose family is known, or a Hub id (str)."""
        ...


def available_backbones() -> dict[str, str]:
    """``model_type`` -> ``"module:loader"`` of every family, built-in ones first."""
    found = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return {**_BUILT_IN, **{k: v for k, v in found.items() if k not in _BUILT_IN}}


def load_backbone(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    adapter: str | Path | None = None,
) -> Backbone:
    """Load a backbone, ready for use: evaluation mode, all weights frozen.

    Args:
        name_or_path: a checkpoint folder in the Hub format, ``"janus-nano"`` (the bundled model),
            or a Hub id such as ``"deepseek-community/Janus-Pro-1B"`` (downloaded on first use).
        dtype: "float32", "bfloat16", or "auto": the checkpoint's own (float16 becomes bfloat16,
            because training in float16 would need loss scaling).
        device: where to put it; None is the GPU if there is one, else the CPU.
        adapter: folder of a LoRA adapter to load on top.

    Raises:
        UserError: wrong or incomplete checkpoint, unsupported family, dtype or device, foreign
            adapter. Everything but the adapter's fit is checked before weights are loaded.
    """
    check_dtype(dtype)
    place = check_device(device)
    checkpoint = find_checkpoint(name_or_path)
    families = available_backbones()
    if isinstance(checkpoint, Path):
        model_type = read_model_type(checkpoint / "config.json", families)
    else:
        model_type = read_model_type(fetch_config(checkpoint), families)
    if adapter is not None:
        from unigame.backbones.lora import read_adapter

        read_adapter(adapter)
    with _quiet_if(name_or_path == BUNDLED):
        backbone = _loader(model_type, families[model_type])(checkpoint, dtype=dtype, device=place)
    if adapter is not None:
        backbone.load_adapter(adapter)
    return backbone.eval()


@contextmanager
def _quiet_if(small: bool) -> Iterator[None]:
    """No loading bar for a model that loads in an instant."""
    if small and hf_logging.is_progress_bar_enabled():
        hf_logging.disable_progress_bar()
        try:
            yield
        finally:
            hf_logging.enable_progress_bar()
    else:
        yield


def _loader(model_type: str, reference: str) -> BackboneLoader:
    module_name, _, attributes = reference.partition(":")
    try:
        target = import_module(module_name)
        for attribute in attributes.split("."):
            target = getattr(target, attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"backbone family {model_type!r} is registered as {reference!r}, which does not load "
            f"({error}); reinstall or fix the package that provides it"
        ) from error
    return cast(BackboneLoader, target)
