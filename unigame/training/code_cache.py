"""Image codes by sample id: the image tokenizer is frozen, so a picture's codes never change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unigame.backbones.base import Backbone
from unigame.methods.rows import shrink


class CodeCache:
    """Codes as small integers on the CPU. Latents (floating point) are not kept."""

    def __init__(self) -> None:
        self._codes: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def encode(self, backbone: Backbone, images: Tensor, ids: Sequence[str]) -> Tensor:
        """Codes of ``images`` (B, N); only unknown ids go through the image tokenizer."""
        missing = [row for row, name in enumerate(ids) if not name or name not in self._codes]
        if missing:
            fresh = backbone.encode_images(images[missing])
            if fresh.is_floating_point() or not all(ids):
                return fresh if len(missing) == len(ids) else backbone.encode_images(images)
            for row, codes in zip(missing, fresh, strict=True):
                self._codes[ids[row]] = shrink(codes)
        return torch.stack([self._codes[name] for name in ids]).to(images.device).long()
