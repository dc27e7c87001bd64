"""A linear layer of 8-bit weights whose input stays in its own precision. Needs bitsandbytes.

bitsandbytes' own product rounds the input to 8 bits too, all but columns that are large somewhere
in the batch. A row's result then depends on the rows beside it, training on a GPU differs from
training on a CPU, and the input passes through float16, where a large activation is infinite.
Here weights alone are rounded, for which the gradient is exact.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 127


class Int8Linear(bnb.nn.Linear8bitLt):
    """bitsandbytes' layer, so that PEFT knows it, with another product."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` times the weights as they are written out again in ``x``'s precision."""
        weight: Any = self.weight
        scale = weight.SCB if self.state.SCB is None else self.state.SCB
        return _Product.apply(x, weight.data, scale, self.bias)


class _Product(torch.autograd.Function):
    """x @ W.T + b that keeps the 8-bit W for its backward pass, never W written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, bias: Any) -> Tensor:
        ctx.save_for_backward(packed, scale)
        kind = x.device.type
        if torch.is_autocast_enabled(kind):  # as a plain linear layer would
            x = x.to(torch.get_autocast_dtype(kind))
        return F.linear(x, _whole(packed, scale, x), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        packed, scale = ctx.saved_tensors
        return grad @ _whole(packed, scale, grad), None, None, None


def _whole(packed: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    return (packed * (scale / LEVELS)[:, None]).to(like.dtype)
