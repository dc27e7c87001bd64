"""One transformers model as an object: freezing, LoRA, checkpointing, modes, precision, weights.

``HubModel`` is the half of a backbone that knows nothing of questions and pictures. Precision:
under a bfloat16 base the language model runs in bfloat16 autocast, while LoRA weights and what lies
between a perturbed state and the pixels are float32.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import peft
import torch
from torch import nn
from transformers import AutoConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as hf_logging

from unigame.backbones.base import Backbone
from unigame.backbones.common import adapter_files, lora, packing
from unigame.backbones.common.pixels import PixelTwin
from unigame.backbones.folder import check_weight_files
from unigame.backbones.model_files import loading_from
from unigame.errors import UserError

MARGIN = 100_000_000
"""Weights more than a checkpoint's that a model may have, such as a decoder that others bring."""
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class HubModel(Backbone):
    """A frozen model with its processor, LoRA, checkpointing and precision; no verbs yet.

    Args:
        model: a transformers model with a language model inside; it is frozen here and used in
            place.
        processor: its processor or tokenizer.
        pixels: the differentiable twin of what resizes and normalises pictures.
    """

    frozen_parts: ClassVar[tuple[str, ...]] = ()
    """Frozen modules by their name in ``base.model``, and ``"lm_head"``."""
    language_name: str = "language_model"
    """The language model's name in the model: LoRA stays below it."""
    _digest: str = ""

    def __init__(self, model: Any, processor: Any, pixels: PixelTwin) -> None:
        super().__init__()
        name = str(getattr(model, "name_or_path", None) or "")
        if name and Path(name).is_dir():  # PEFT writes it into adapters: absolute holds anywhere
            model.name_or_path = model.config._name_or_path = os.path.abspath(name)
        self.model = model
        self.processor = processor
        self.pixels = pixels.to(model.get_input_embeddings().weight.device)
        self.checkpointing = False
        self.requires_grad_(False)
        self.dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        for module in self.language_model.modules():
            if "attention_dropout" in vars(module):
                module.attention_dropout = 0.0  # not an nn.Dropout: without_dropout would miss it

    @property
    def base(self) -> Any:
        """The transformers model; with LoRA its linear layers are PEFT's, in place."""
        model = self.model
        return model.get_base_model() if isinstance(model, peft.PeftModel) else model

    @property
    def language_model(self) -> Any:
        """The language model without its head."""
        return getattr(self.base.model, self.language_name)

    # ---- LoRA and files ------------------------------------------------------------------------
    def quantize(self, kind: str, device: torch.device) -> Self:
        if isinstance(self.model, peft.PeftModel) or self.quantization != "none":
            raise UserError(
                f"quantization={kind!r} of a model with an adapter, or that is quantised already; "
                "load it afresh with load_backbone(..., quantization=...)"
            )
        digest = self.weights_digest()  # of the weights as they were: an adapter's base is these
        packing.pack(self.model, self.language_name, kind, device)
        self.quantization, self._digest = kind, digest
        return self.to(device)

    def weights_digest(self) -> str:
        return self._digest or super().weights_digest()

    def add_lora(self, config: peft.LoraConfig | None = None) -> Self:
        # By default the paper's rank 16 (B.2).
        if isinstance(self.model, peft.PeftModel):
            raise UserError("this backbone has a LoRA adapter already; load the model afresh")
        targets = self.facts.lora_targets
        settings = lora.language_model_lora(config, targets, self.language_name)
        self.requires_grad_(False)
        self.model = lora.wrap(self.model, settings, self.language_name)
        return self.train(self.training)

    @contextmanager
    def lora_disabled(self) -> Iterator[None]:
        with lora.disabled(self):
            yield

    def save_pretrained(self, folder: str | Path) -> None:
        if isinstance(self.model, peft.PeftModel):
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
            adapter_files.write_base(folder, self._base())
            return
        self._refuse_if_quantized("saved")
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def save_merged(self, folder: str | Path) -> None:
        """Write model and processor, LoRA added to the weights; the adapter is gone then.

        Raises:
            UserError: the base is quantised, so that sums of weights would be rounded again.
        """
        self._refuse_if_quantized("merged")
        if isinstance(self.model, peft.PeftModel):
            self.model = cast(Any, self.model).merge_and_unload(safe_merge=True)
        self.save_pretrained(folder)

    def _refuse_if_quantized(self, done: str) -> None:
        if self.quantization != "none":
            raise UserError(
                f"a model with quantization={self.quantization!r} is not {done}: its weights are "
                "rounded; save the adapter, load it with quantization=none, or merge it by "
                "unigame merge RUN OUTPUT, which takes the base's own weights"
            )

    def load_adapter(self, folder: str | Path) -> None:
        # A warning is logged where the adapter says that it was made for another base model.
        config, weights = adapter_files.read_adapter(folder)
        with adapter_files.naming_its_base(folder, self._name()):
            self._take(config, weights, folder)
        adapter_files.warn_if_other(folder, self._base())
        self.adapter_loaded = True

    def _take(
        self, config: peft.LoraConfig, weights: dict[str, torch.Tensor], folder: str | Path
    ) -> None:
        added = not isinstance(self.model, peft.PeftModel)
        if added:
            with loading_from(folder, (adapter_files.ADAPTER_CONFIG,), "adapter"):
                self.add_lora(config)
        wrapped = cast(peft.PeftModel, self.model)
        try:
            adapter_files.load_weights(wrapped, weights, folder)
        except UserError:
            if added:
                self.model = wrapped.unload()  # as it was
            raise

    def _name(self) -> str:
        """Hub id, bundled name or path, as far as it is known."""
        return self.source or str(getattr(self.base, "name_or_path", ""))

    def _base(self) -> adapter_files.Base:
        name = self._name()
        own = (
            str(getattr(self.base, "name_or_path", "")) == name
        )  # a composed model is no checkpoint
        commit = getattr(self.base.config, "_commit_hash", None) if own else None
        return adapter_files.Base(name, self.weights_digest(), str(commit or ""), self.quantization)

    # ---- modes and precision -------------------------------------------------------------------
    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        if every_n_layers != 1 or offload:
            raise UserError(
                f"activation checkpointing with every_n_layers={every_n_layers}, offload={offload} "
                "is not supported; leave both out of gradient_checkpointing_kwargs"
            )
        settings = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        for part in (self.language_model, *self.frozen_towers()):
            # Renamed in newer transformers, where the old name warns.
            enable = getattr(part, "activation_checkpointing_enable", None)
            (enable or part.gradient_checkpointing_enable)(settings)
        self.checkpointing = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Only the language model takes the mode; all that is frozen stays in evaluation mode."""
        super().train(False)
        self.training = mode
        self.language_model.train(mode)
        for name in self.frozen_parts:
            owner = self.base if name == "lm_head" else self.base.model
            owner.get_submodule(name).eval()
        for tower in self.frozen_towers():
            for layer in tower.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    # Checkpointing acts on layers that are flagged as training; what is inside the
                    # layer (and reads the flag for its dropout) stays in evaluation mode.
                    layer.training = mode and self.checkpointing
        return self

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Bfloat16 autocast for a bfloat16 base; else whatever the caller has set.

        Autocast's weight cache is off: in older torch, once filled in a pass without gradient, it
        cuts the LoRA weights out of the next pass with gradient (pytorch issue 112583).
        """
        kind = self.device.type
        half = self.dtype == torch.bfloat16
        enabled = half or torch.is_autocast_enabled(kind)
        dtype = torch.bfloat16 if half else torch.get_autocast_dtype(kind)
        with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
            yield

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Within: evaluation mode; afterwards every module is exactly as it was."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


# ---- weights -------------------------------------------------------------------------------------
def load_weights(
    model_class: Any,
    name_or_path: str | Path,
    dtype: str | torch.dtype,
    optional: Sequence[str] = (),
    float32: Sequence[str] = (),
    **extra: Any,
) -> Any:
    """A model of ``model_class`` with all of its weights; float16 becomes bfloat16.

    Args:
        model_class: a ``PreTrainedModel``, or an ``AutoModel`` that finds one.
        name_or_path: checkpoint folder or Hub id.
        dtype: a dtype or its name, or "auto".
        optional: modules by name that become None where the checkpoint has no weights for them.
        float32: modules by name that are read in float32, whatever ``dtype`` says.
        extra: further settings of ``from_pretrained``.

    Raises:
        UserError: weights do not load, some of the model's are not among them, or have another
            shape, or belong to layers that the configuration does not count.
    """
    named = isinstance(dtype, str) and dtype != "auto"
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # tensors that do not fit are errors here, not a table
    try:
        with loading_from(name_or_path, ("config.json", "generation_config.json")):
            _check_scale(model_class, Path(name_or_path))
            model, info = _keeping(model_class, tuple(float32)).from_pretrained(
                name_or_path,
                dtype=getattr(torch, str(dtype)) if named else dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **extra,
            )
    finally:
        hf_logging.set_verbosity(level)
    refuse_misfits(name_or_path, model, info)
    missing = set(info["missing_keys"])
    for module in optional:
        lost = {key for key in missing if key.startswith(f"{module}.")}
        if lost:
            parent, _, name = module.rpartition(".")
            setattr(model.get_submodule(parent), name, None)
            missing -= lost
    refuse_missing(name_or_path, missing)
    if any(weight.dtype == torch.float16 for weight in model.parameters()):
        model._apply(lambda t: t.to(torch.bfloat16) if t.dtype == torch.float16 else t)
    return model


@functools.cache
def _keeping(model_class: Any, float32: tuple[str, ...]) -> Any:
    """``model_class`` that reads some modules in float32; under its own name, which files repeat.

    Tensor by tensor, so none is rounded first or held twice. transformers reads the names from the
    class only, and its own class stays as others use it.
    """
    if not float32:
        return model_class
    named = {"_keep_in_fp32_modules_strict": set(float32), "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), named)


def _check_scale(model_class: Any, folder: Path) -> None:
    """A configuration of far more weights than a folder has: they would first all be made.

    Packed weights (four bits each) count as half a value at least, so only multiples are refused.
    """
    if not folder.is_dir():
        return
    there = check_weight_files(folder)
    own = getattr(model_class, "config_class", None)
    build = model_class.from_config if own is None else model_class._from_config
    config = (own or AutoConfig).from_pretrained(folder)
    with torch.device("meta"):
        wanted = sum(weight.numel() for weight in build(config).parameters())
    if wanted > 4 * there + MARGIN:
        raise UserError(
            f"{str(folder / 'config.json')!r} describes a model of {wanted:,} weights, and its "
            f"weight files hold {there:,}; they do not belong together: download or save the "
            "checkpoint again"
        )


def refuse_misfits(name_or_path: str | Path, model: nn.Module, info: dict[str, Any]) -> None:
    """Tensors of another shape would start at random, layers that are not counted be left out.

    Raises:
        UserError: the loading report ``info`` has such tensors.
    """
    misfits = sorted(info["mismatched_keys"])
    if misfits:
        name, there, wanted = misfits[0]
        raise UserError(
            f"the weights of {str(name_or_path)!r} do not load: {name!r} has the shape "
            f"{tuple(there)}, and {tuple(wanted)} by config.json ({len(misfits)} such tensors); "
            "download or save the checkpoint again"
        )
    stacks = {name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    # What stands before the first number in a tensor's name is the list of layers it is of.
    left_out = sorted(
        name
        for name in info["unexpected_keys"]
        if re.split(r"\.\d+\.", name, maxsplit=1)[0] in stacks
    )
    if left_out:
        raise UserError(
            f"the weights of {str(name_or_path)!r} have more layers than its config.json counts: "
            f"{left_out[0]!r} would be left out ({len(left_out)} such tensors); download or save "
            "the checkpoint again"
        )


def refuse_missing(name_or_path: str | Path, keys: Collection[str]) -> None:
    """Tensors that a checkpoint lacks would start at random, after no more than a warning.

    Raises:
        UserError: there are such ``keys``.
    """
    if keys:
        raise UserError(
            f"the weights of {str(name_or_path)!r} lack {len(keys)} tensors of the model, "
            f"{min(keys)!r} among them; the checkpoint is incomplete: download or save it again"
        )
