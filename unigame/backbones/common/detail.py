"""Pictures without their fine detail: what is read of a picture that is to be drawn again."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def without_detail(images: Tensor, side: int) -> Tensor:
    """Pictures (B, 3, S, S) shrunk to ``side`` px and enlarged again: what is finer is gone.

    Differentiable; pictures of that side or less are returned as they are.
    """
    size = images.shape[-2:]
    if side >= max(size):
        return images
    small = F.interpolate(
        images, size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return F.interpolate(small, size=size, mode="bilinear", align_corners=False)
