"""Pictures without their fine detail: what is read of a picture that is to be drawn again."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def without_detail(images: Tensor, side: int) -> Tensor:
    """Pictures (B, 3, h, w) shrunk until the longer side is ``side`` px, and enlarged again.

    What is finer is gone. Differentiable; pictures of that side or less are returned as they are.
    """
    size = images.shape[-2:]
    longest = max(size)
    if side >= longest:
        return images
    few = [max(1, round(length * side / longest)) for length in size]
    small = F.interpolate(images, size=few, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, size=size, mode="bilinear", align_corners=False)
