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
