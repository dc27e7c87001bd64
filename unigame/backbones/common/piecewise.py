"""Convolutions over a batch a few pictures at a time, recomputed in backward if wanted.

The activations of an image tokenizer at full size take gigabytes for each picture, more than those
of the language model beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PIXELS_AT_ONCE = 512 * 512


def in_parts(
    convolve: Callable[[Tensor], Tensor], rows: Tensor, *, side: int, recompute: bool
) -> Tensor:
    """``convolve`` on parts of at most ``PIXELS_AT_ONCE`` pixels, one picture at least.

    The parts are the same with and without a gradient, with and without recomputing. A batch of
    another size may round otherwise, and then the nearest code is another one or ``render`` does
    not repeat ``draw`` bit for bit.

    Args:
        convolve: rows -> rows, each on its own.
        rows: (B, ...), pictures or what stands for them.
        side: of a picture, in px.
        recompute: whether backward runs ``convolve`` again instead of keeping its activations.
    """
    parts = rows.split(max(1, PIXELS_AT_ONCE // side**2))
    if recompute and rows.requires_grad and torch.is_grad_enabled():
        done = [checkpoint(convolve, part, use_reentrant=False) for part in parts]
        return torch.cat(cast(list[Tensor], done))
    return torch.cat([convolve(part) for part in parts])
