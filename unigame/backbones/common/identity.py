"""Which weights a model has: a short digest, the same on every device and in every precision."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

PLACES = 65_536  # of each tensor; smaller tensors count as a whole


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """A digest of a model's own weights; those of LoRA do not count.

    Values are rounded to bfloat16, so that a checkpoint has one digest in whatever precision it is
    loaded, and of a large tensor evenly spaced values stand for all: fine-tuning moves most of
    them. So it tells models apart that have the same shapes, in a second for 7 B parameters.
    """
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            continue
        flat = weight.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // PLACES)][: 2 * PLACES]
        digest.update(str(tuple(weight.shape)).encode())
        digest.update(picked.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
