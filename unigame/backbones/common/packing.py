"""The language model's frozen linear layers in 4 or 8 bits, by bitsandbytes (QLoRA's base).

``nf4`` keeps a weight as one of 16 levels of a normal distribution, in blocks of 64 with a scale
each, the scales in 8 bits again (Dettmers et al. 2023, QLoRA). ``int8`` keeps 256 levels, with a
scale for each output unit. Either way the weights are written out again in the layer's precision
for each product, so activations and gradients are of that precision. All that is not a linear layer
of the language model stays as it was loaded: eyes, image tokenizer or VAE, embeddings, heads,
aligners, C. LoRA is float32.

The model is loaded into CPU memory first and packed layer by layer on its way to the device.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from unigame.backbones.common.quantization import NONE, require_quantization
from unigame.errors import UserError
from unigame.system.say import warn

BLOCK = 64  # weights that share a scale
MISREAD = 0.12  # relative error of normal weights read back; rounding itself makes .09


def pack(model: Any, prefix: str, kind: str, device: torch.device) -> None:
    """Replace the linear layers of a language model, in place.

    Args:
        model: a transformers model; what is not packed stays on its device.
        prefix: the language model's module name, as for LoRA; heads are not packed.
        kind: "nf4" or "int8".
        device: of the packed layers.

    Raises:
        UserError: bitsandbytes is not installed, or there is no linear layer.
    """
    require_quantization(kind)
    if kind == NONE:
        return
    names = [name for name, _ in language_linears(model, prefix)]
    if not names:
        raise UserError(
            f"quantization={kind!r}: the language model has no plain linear layer to pack; "
            "load it with quantization=none"
        )
    if kind == "nf4" and device.type == "cpu":
        _tell_of_misread({name: model.get_submodule(name).in_features for name in names})
    for name in names:
        model.set_submodule(name, _packed(model.get_submodule(name), kind, device))
    # PEFT asks the model, not its layers, before it puts LoRA beside packed weights.
    setattr(model, "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit", True)


def _tell_of_misread(widths: Mapping[str, int]) -> None:
    """Warn where bitsandbytes does not read back what it wrote.

    Version 0.50.2 does so on CPUs with AVX-512: where a row is no multiple of a block it may take
    the scale of another one.
    """
    errors = {width: _misread(width) for width in set(widths.values()) if width % BLOCK}
    wrong = [name for name, width in widths.items() if errors.get(width, 0.0) > MISREAD]
    if wrong:
        width = widths[wrong[0]]
        warn(
            f"quantization=nf4: bitsandbytes reads {len(wrong)} 4-bit layers wrongly on this CPU, "
            f"such as {wrong[0]}, {width} wide (relative error {errors[width]:.2f}), so this model "
            "is not what it was; take int8, a GPU, or no quantization"
        )


def _misread(width: int) -> float:
    """Relative error of normal weights of this width, packed and read back."""
    from bitsandbytes import functional

    plain = torch.randn(BLOCK, width, generator=torch.Generator().manual_seed(0))
    read = functional.dequantize_4bit(*functional.quantize_4bit(plain, quant_type="nf4"))
    return float((read - plain).norm() / plain.norm())


def language_linears(model: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Linear]]:
    """The plain linear layers below ``prefix``, by name, without the head over the vocabulary."""
    for name, module in model.named_modules():
        inside = f".{prefix}." in f".{name}."
        if inside and type(module) is nn.Linear and not name.endswith("lm_head"):
            yield name, module


def _packed(layer: nn.Linear, kind: str, device: torch.device) -> nn.Module:
    import bitsandbytes as bnb

    from unigame.backbones.common.int8_linear import Int8Linear

    # It warns at every product that it casts to float16; Int8Linear does not.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    shape = (layer.in_features, layer.out_features, layer.bias is not None)
    weight = layer.weight.detach()
    new: Any
    with torch.device("meta"):
        if kind == "nf4":
            new = bnb.nn.Linear4bit(*shape, compute_dtype=weight.dtype, quant_type="nf4")
        else:
            new = Int8Linear(*shape, has_fp16_weights=False)
    if kind == "nf4":
        new.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=new
        ).to(device)
        # On CPUs with AVX512-BF16 a pass without gradient would rearrange the weights for good, and
        # the next pass with gradient could not read them.
        new.support_avx512bf16_for_cpu = False
    else:
        new.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False).to(device)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach().to(device), requires_grad=False)
    return new.train(layer.training)
