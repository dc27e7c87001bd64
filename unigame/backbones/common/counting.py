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
from torch.utils._python_dispatch import TorchDispatchMode

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


def count_lora(language_model: nn.Module) -> dict[str, int]:
    """Weights of LoRA on the usual linear layers, by name: rank x (inputs + outputs) of each."""
    found: dict[str, int] = {}
    for name, module in language_model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Linear) and last in LORA_TARGETS:
            added = LORA_RANK * (module.in_features + module.out_features)
            found[last] = found.get(last, 0) + added
    return found


def count_layers(module: nn.Module) -> int:
    """Weights of the layers of a transformer, which ``shard_frozen`` shares out."""
    return sum(
        count(child) if isinstance(child, nn.ModuleList) else count_layers(child)
        for child in module.children()
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
    return sum(saved_and_cast(build, run, dtype))


def saved_and_cast(build: Build, run: Run, dtype: Dtype) -> tuple[int, int]:
    """See ``saved_bytes``: activations, which grow with the batch, and weights that are cast."""
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
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, autocast, _Casts(weights) as casts:
            run(module)
    cast = sum(nbytes for address, (nbytes, _) in kept.items() if address in casts.found)
    return sum(nbytes for nbytes, _ in kept.values()) - cast, cast


class _Casts(TorchDispatchMode):
    """Sees where copies of weights in another type lie."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights = weights
        self.found: dict[int, Tensor] = {}  # held: no address is used again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            if args[0].untyped_storage()._cdata in self.weights:
                self.found[made.untyped_storage()._cdata] = made
        return made


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
