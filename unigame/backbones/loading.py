"""``load_backbone``: from a checkpoint's ``config.json`` to its family, its files, its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers.utils import logging as hf_logging

from unigame.backbones.base import Backbone, Reading
from unigame.backbones.common.quantization import NONE, require_quantization
from unigame.backbones.common.understanding import ReadingBackbone
from unigame.backbones.folder import (
    check_device,
    check_dtype,
    find_checkpoint,
    find_family,
    require_parts,
)
from unigame.backbones.model_files import check_json_files, loading_from, refuse_not_finite
from unigame.backbones.registry import BUILT_IN, available_backbones, find_info, resolve
from unigame.bundled import BUNDLED_MODELS
from unigame.errors import UserError

if TYPE_CHECKING:
    import peft


class BackboneLoader(Protocol):
    """What an entry point names: builds a backbone from a folder or Hub id."""

    def __call__(self, name_or_path: str | Path, *, dtype: str, device: torch.device) -> Backbone:
        """``name_or_path`` is a folder (Path) whose family is known, or a Hub id (str)."""
        ...


def load_backbone(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    adapter: str | Path | None = None,
    quantization: str = "none",
) -> Backbone:
    """Load a backbone, ready for use: evaluation mode, all weights frozen.

    Args:
        name_or_path: a checkpoint folder in the Hub format, a bundled model (``"janus-nano"``),
            or a Hub id such as ``"deepseek-community/Janus-Pro-1B"`` (downloaded on first use).
        dtype: "float32", "bfloat16", or "auto": the checkpoint's own (float16 becomes bfloat16,
            because training in float16 would need loss scaling).
        device: where to put it; None is the GPU if there is one, else the CPU.
        adapter: folder of a LoRA adapter to load on top.
        quantization: "none", "nf4" or "int8": how the language model's linear layers are kept, by
            bitsandbytes. The model passes through CPU memory in ``dtype`` first.

    Raises:
        UserError: wrong or incomplete checkpoint, unsupported family, dtype, quantization or
            device, bitsandbytes is missing, foreign adapter, weights that are not finite. All but
            the adapter's fit is checked before weights are loaded; whether these are finite, when
            they have reached the device: one sum a tensor, about a second for 7 B parameters on one
            CPU core.
    """
    check_dtype(dtype)
    place = check_device(device)
    require_quantization(quantization)
    checkpoint, model_type = find_model(name_or_path, adapter=adapter)
    loader: BackboneLoader = resolve(model_type, available_backbones()[model_type])
    files = ("config.json", "processor_config.json", "preprocessor_config.json")
    with _quiet_if(name_or_path in BUNDLED_MODELS), loading_from(checkpoint, files):
        first = place if quantization == NONE else torch.device("cpu")
        backbone = loader(checkpoint, dtype=dtype, device=first)
        if isinstance(backbone, ReadingBackbone):
            backbone.rehearse()
    refuse_not_finite(backbone, f"the model of {str(name_or_path)!r}")
    if quantization != NONE:
        backbone.quantize(quantization, place)
    local = isinstance(checkpoint, Path) and str(name_or_path) not in BUNDLED_MODELS
    backbone.source = os.path.abspath(checkpoint) if local else str(name_or_path)
    if adapter is not None:
        backbone.load_adapter(adapter)
    return backbone.eval()


def find_model(
    name_or_path: str | Path,
    *,
    adapter: str | Path | None = None,
    lora: peft.LoraConfig | None = None,
) -> tuple[Path | str, str]:
    """Folder or Hub id of a checkpoint, and its ``model_type``, after all checks that cost nothing.

    Args:
        name_or_path: as in ``load_backbone``.
        adapter: as there.
        lora: settings of LoRA weights that will be added to it; None: its own, or none.

    Raises:
        UserError: no such model, an unsupported family, files that are missing; no such adapter, or
            LoRA on layers that the family does not have.
    """
    checkpoint = find_checkpoint(name_or_path)
    model_type, _ = find_family(checkpoint, available_backbones())
    info = find_info(model_type)
    if info is not None and info.parts and isinstance(checkpoint, Path):
        require_parts(checkpoint, info.parts)
    if adapter is not None:
        from unigame.backbones.common.adapter_files import read_adapter

        read_adapter(adapter)
    if lora is not None and info is not None and info.lora_targets:
        from unigame.backbones.common.lora import language_model_lora

        short = [name.rpartition(".")[2] for name in info.lora_targets]  # a family may complete it
        language_model_lora(lora, (*info.lora_targets, *short))
    return checkpoint, model_type


def load_reading(name_or_path: str | Path) -> Reading:
    """How a model reads records: its layout and image processor, without its weights.

    A family that does not say how (``FamilyInfo.reading``) is loaded whole.

    Args:
        name_or_path: as in ``load_backbone``.

    Raises:
        UserError: wrong or incomplete checkpoint, or unsupported family.
    """
    found = reading_without_weights(name_or_path)
    return load_backbone(name_or_path, dtype="auto").reading if found is None else found


def reading_without_weights(name_or_path: str | Path) -> Reading | None:
    """As ``load_reading``; None of a family that says how it reads by its weights alone."""
    checkpoint = find_checkpoint(name_or_path)
    model_type, _ = find_family(checkpoint, available_backbones())
    if isinstance(checkpoint, Path):
        check_json_files(checkpoint)
    info = find_info(model_type)
    if info is None or info.reading is None:
        return None
    with loading_from(checkpoint, ("config.json", "processor_config.json")):
        reading: Reading = resolve(model_type, info.reading)(checkpoint)
    return reading


def wrap_model(model: Any, processor: Any) -> Backbone:
    """The backbone of a transformers model that is loaded already, which is used in place.

    Args:
        model: of a family that says how it ``wraps`` one.
        processor: the model's own, which a loaded model does not carry.

    Raises:
        UserError: no such model, or no processor.
    """
    kind, config = type(model).__name__, getattr(model, "config", None)
    info = find_info(str(getattr(config, "model_type", "")))
    if info is None or info.wraps is None:
        known = ", ".join(info.model_type for info in BUILT_IN if info.wraps)
        raise UserError(
            f"model is {kind}; give a checkpoint folder or Hub id, a Backbone, or a loaded "
            f"transformers model of {known}"
        )
    if processor is None:
        raise UserError(
            f"processing_class is missing: a loaded {kind} does not carry its processor; pass it, "
            "or give the checkpoint's folder as model"
        )
    backbone: Backbone = resolve(info.model_type, info.wraps)(model, processor)
    return backbone


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
