"""Sums and means over the processes of a run."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


def sum_over_ranks(accelerator: Accelerator, values: Tensor) -> Tensor:
    """The sum over all processes; on one, the values themselves."""
    if accelerator.num_processes == 1:
        return values
    return accelerator.reduce(values, reduction="sum")


def average_over_ranks(accelerator: Accelerator, gradients: list[Tensor]) -> None:
    """The mean of each gradient over all processes, in place and in one collective."""
    if accelerator.num_processes == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat = sum_over_ranks(accelerator, flat) / accelerator.num_processes
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))


def gather_from_ranks(accelerator: Accelerator, values_E: Tensor) -> Tensor:
    """The values of all processes, one after another; each may hold another number of them.

    They are padded with NaN, so who takes them must leave out what is not finite.
    """
    if accelerator.num_processes == 1:
        return values_E
    padded_E = accelerator.pad_across_processes(values_E, pad_index=float("nan"))
    return accelerator.gather(padded_E)
