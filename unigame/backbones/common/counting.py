"""Count weights and saved activations of modules that are never really there.

Weights are counted on the meta device. What autograd saves is counted by a forward pass on fake
tensors, which have shapes and no values, so a pass of gigabytes costs neither memory nor time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from unigame.backbones.common.hub_model import LORA_TARGETS
from unigame.backbones.common.packing import language_linears
from unigame.backbones.memory import LORA_RANK, Dtype, PictureBytes

Build = Callable[[], Any]
Run = Callable[[Any], Tensor]


def on_meta(build: Callable[[], Any]) -> Any:
    """What ``build`` makes, on the meta device."""
    with torch.device("meta"):
        return build()


def count(module: nn.Module) -> int:
    """Weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_lora(language_model: nn.Module) -> int:
    """Weights of LoRA on the usual linear layers: rank x (inputs + outputs) of each."""
    return LORA_RANK * sum(
        module.in_features + module.out_features
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in LORA_TARGETS
    )


def count_packable(model: nn.Module, language_name: str) -> int:
    """Weights of the language model's linear layers, biases left out."""
    return sum(layer.weight.numel() for _, layer in language_linears(model, language_name))


def leaf(*shape: int) -> Tensor:
    """An input whose gradient is wanted."""
    return torch.zeros(shape, requires_grad=True)


def saved_bytes(build: Build, run: Run, dtype: Dtype = "float32") -> int:
    """Bytes that autograd keeps for the backward pass of ``run`` on a frozen module.

    Args:
        build: makes the module.
        run: its forward pass, from inputs that it makes itself (``leaf``).
        dtype: "bfloat16" runs it under autocast, which also keeps weights that it casts.
    """
    kept: dict[int, tuple[int, Tensor]] = {}
    with FakeTensorMode():
        module = build().requires_grad_(False).eval()
        weights = {weight.untyped_storage()._cdata for weight in module.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = (storage.nbytes(), tensor)  # held: no address is used again
            return tensor

        autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
            run(module)
    return sum(nbytes for nbytes, _ in kept.values())


def convolutions(build: Build, run: Run, *, half: bool = True) -> dict[Dtype, PictureBytes]:
    """``PictureBytes`` of convolutions that checkpointing recomputes in one piece.

    Args:
        build: makes the module.
        run: one picture.
        half: whether they run under autocast on a bfloat16 base, or in float32 on any.
    """
    full = float(saved_bytes(build, run))
    less = float(saved_bytes(build, run, "bfloat16")) if half else full
    return {
        "float32": PictureBytes(whole=full, recomputed=full),
        "bfloat16": PictureBytes(whole=less, recomputed=less),
    }
