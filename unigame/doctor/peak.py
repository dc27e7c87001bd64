"""Peak memory of a piece of work, in bytes of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors at the worst moment of one call, above those that live before it.

    On a GPU as the allocator counts them. On a CPU as the profiler sees every allocation and
    release, so that neither malloc's habits nor other programs matter.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = [
        event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def tensor_bytes(*holders: nn.Module | torch.optim.Optimizer) -> int:
    """Bytes of the weights (packed ones with their scales), buffers and states of optimizers."""
    found: list[torch.Tensor] = []
    for holder in holders:
        if isinstance(holder, nn.Module):
            found += [*holder.parameters(), *holder.buffers()]
            found += [scale for layer in holder.modules() for scale in _scales(layer)]
        else:
            states = holder.state.values()
            found += [
                value for state in states for value in state.values() if torch.is_tensor(value)
            ]
    return sum(tensor.numel() * tensor.element_size() for tensor in found)


def _scales(layer: nn.Module) -> list[torch.Tensor]:
    """Of a layer that bitsandbytes has packed: of blocks, of scales of blocks, of output units."""
    weight = getattr(layer, "weight", None)
    four = getattr(weight, "quant_state", None)
    eight = getattr(weight, "SCB", None)
    if four is None:
        return [] if eight is None else [eight]
    return [four.absmax] + ([four.state2.absmax] if four.nested else [])
