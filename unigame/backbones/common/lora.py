"""LoRA on the language model of a backbone, through PEFT."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import peft
import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unigame.backbones.common.lora_settings import check_lora_config
from unigame.errors import UserError


def language_model_lora(
    config: peft.LoraConfig | None, targets: Sequence[str], prefix: str = "language_model"
) -> peft.LoraConfig:
    """The LoRA settings, restricted to the linear layers of the language model.

    Args:
        config: what the user asked for; None is the paper's r 16, alpha 32, dropout 0.05 (B.2).
            Layer names in ``target_modules`` would match the vision tower too, so they become a
            pattern that only matches below ``prefix``. A pattern (str) is taken as it is.
        targets: names of the language model's linear layers.
        prefix: module name of the language model.

    Raises:
        UserError: a name in ``target_modules`` is not one of ``targets``, a number is impossible,
            or the model without LoRA would not be the base model.
    """
    if config is None:
        config = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05)
    check_lora_config(config)
    config = copy.deepcopy(config)
    wanted = config.target_modules
    if wanted is None or wanted == "all-linear":
        wanted = set(targets)
    if isinstance(wanted, str):
        return config
    for name in wanted:
        if name not in targets:
            raise UserError(
                f"LoRA target {name!r} is no linear layer of the language model; "
                f"choose from {', '.join(targets)}"
            )
    inside = _inside(config, prefix)
    config.target_modules = rf"(?:.*\.)?{inside}\..*\.(?:{'|'.join(sorted(wanted))})"
    return config


def _inside(config: peft.LoraConfig, prefix: str) -> str:
    """Where the targets are: in the language model, or in its ``layers_to_transform``.

    These are taken out of ``config``: beside a pattern PEFT passes over them, so that every layer
    would learn, and then refuses to read the adapter that it wrote.
    """
    chosen, lists = config.layers_to_transform, config.layers_pattern or ["layers"]
    if chosen is None:
        return prefix
    config.layers_to_transform = config.layers_pattern = None
    numbers = "|".join(str(number) for number in ([chosen] if isinstance(chosen, int) else chosen))
    names = "|".join([lists] if isinstance(lists, str) else lists)
    return rf"{prefix}\.(?:.*\.)?(?:{names})\.(?:{numbers})"


def wrap(model: nn.Module, config: peft.LoraConfig, prefix: str) -> peft.PeftModel:
    """Freeze ``model``, inject LoRA, and keep the LoRA weights in float32.

    Raises:
        UserError: the settings put LoRA, or anything else that learns, outside the language model,
            put it nowhere, or change the model without LoRA.
    """
    check_lora_config(config)
    model.requires_grad_(False)
    try:
        wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise UserError(
            f"LoRA target_modules={config.target_modules!r} does not fit the model: {error}"
        ) from error
    for name, module in wrapped.named_modules():
        if isinstance(module, BaseTunerLayer) and f".{prefix}." not in f".{name}.":
            wrapped.unload()
            raise UserError(
                f"LoRA target_modules={config.target_modules!r} also matches {name!r}, which is "
                f"frozen; let the pattern start with '.*{prefix}'"
            )
    for name, weight in wrapped.named_parameters():  # whatever else a later PEFT may let learn
        if weight.requires_grad and f".{prefix}." not in f".{name}.":
            wrapped.unload().requires_grad_(False)
            raise UserError(
                f"these LoRA settings would also train {name!r}, which is frozen; leave out those "
                "that reach beyond target_modules"
            )
    return wrapped


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within: LoRA layers act as their base layers.

    PEFT's own switch also flips ``requires_grad`` of the adapter weights, which confuses DDP and
    optimizers built before; only the flag that the forward pass reads is set here.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer) and not module.disable_adapters
    ]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Within: LoRA layers do one matrix product with W + BA in the place of three.

    For passes in which LoRA does not learn. The sums are made once and the layers' own weights come
    back untouched, where PEFT's merge and unmerge would leave rounding behind. Only whole float32
    weights take part: bfloat16 would round a small BA away, and there nothing changes. The merged
    weights need as much memory again as the layers' own.
    """
    layers = [module for module in model.modules() if _can_merge(module)]
    own = [layer.base_layer.weight for layer in layers]
    try:  # memory may end while the sums are made
        with torch.no_grad():
            for layer in layers:
                layer.base_layer.weight = nn.Parameter(_sum(layer), requires_grad=False)
                layer._disable_adapters = True
        yield
    finally:
        for layer, weight in zip(layers, own, strict=True):
            layer.base_layer.weight = weight
            layer._disable_adapters = False


@torch.no_grad()
def effective_weight(layer: nn.Module) -> Tensor | None:
    """The matrix that a bias-free linear layer multiplies by, LoRA included; None for any other."""
    merges = _can_merge(layer)
    base: Any = layer
    if isinstance(layer, LoraLinear) and (merges or layer.disable_adapters):
        base = layer.base_layer
    if type(base) is not nn.Linear or base.bias is not None or isinstance(base.weight, DTensor):
        return None
    return _sum(layer) if merges else base.weight.detach()


def _sum(layer: LoraLinear) -> Tensor:
    weight = layer.base_layer.weight
    return weight + sum(layer.get_delta_weight(name) for name in layer.active_adapters)


def _can_merge(module: nn.Module) -> TypeGuard[LoraLinear]:
    """Whether it is a plain LoRA linear layer in use, with its whole weight here in float32."""
    if not isinstance(module, LoraLinear) or module.disable_adapters or module.merged:
        return False
    base = module.base_layer
    return (
        type(base) is nn.Linear
        and base.weight.dtype == torch.float32
        and not isinstance(base.weight, DTensor)  # a shard (FSDP2) is not the whole weight
        and base.weight.shape == (base.out_features, base.in_features)
        and not base.weight.requires_grad
        and not module.lora_variant
        and not any(module.lora_bias.values())
        and all(name in module.lora_A for name in module.active_adapters)
    )
