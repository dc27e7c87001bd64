"""How BAGEL reads: SigLIP on squares of pixels at their own places, and a connector.

A picture may be of any size in steps of a patch, up to a largest number of patches along a side:
places are counted on the grid of the largest picture, so a small one takes its upper left corner.

Shape suffixes: B pictures, N patches, D width of the eyes, H width of the language model.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, SiglipVisionConfig
from transformers.activations import ACT2FN
from transformers.models.siglip.modeling_siglip import SiglipEncoder


def patches(pixels_BChw: Tensor, size: int) -> Tensor:
    """Squares of ``size`` x ``size``, (B, N, size * size * C): row, column, channel."""
    shape = pixels_BChw.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # B C h p w q
    return shape.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def from_patches(patches_BND: Tensor, size: int, height: int) -> Tensor:
    """The inverse of ``patches``; ``height`` is the number of squares in a column."""
    channels = patches_BND.shape[-1] // size**2
    grid = patches_BND.unflatten(1, (height, -1)).unflatten(3, (size, size, channels))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # B C h p w q


def places(height: int, width: int, most: int, device: torch.device) -> Tensor:
    """Where ``height`` x ``width`` squares lie on a grid of ``most`` a side, (N,)."""
    rows = torch.arange(height, device=device)[:, None] * most
    return (rows + torch.arange(width, device=device)).flatten()


class PatchEmbeddings(nn.Module):
    """Pixels of a patch to a token, by a linear layer, and its place added."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        size = int(config.patch_size)
        self.patch_embedding = nn.Linear(config.num_channels * size**2, config.hidden_size)
        grid = int(config.image_size) // size
        self.position_embedding = nn.Embedding(grid**2, config.hidden_size)


class VisionTransformer(PreTrainedModel):
    """SigLIP's encoder and last norm.

    Args:
        config: as in ``vit_config.json``, which counts one layer too many.
    """

    config_class = SiglipVisionConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: SiglipVisionConfig) -> None:
        config = deepcopy(config)
        config.num_hidden_layers -= 1
        super().__init__(config)
        self.embeddings = PatchEmbeddings(config)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(self, pixels_B3hw: Tensor, places_N: Tensor) -> Tensor:
        """Normalised pixels in steps of a patch -> features (B, N, D). Differentiable."""
        tokens_BND = self.embeddings.patch_embedding(
            patches(pixels_B3hw, int(self.config.patch_size))
        )
        tokens_BND = tokens_BND + self.embeddings.position_embedding(places_N)
        return self.post_layernorm(self.encoder(inputs_embeds=tokens_BND).last_hidden_state)


class Connector(nn.Module):
    """Two-layer MLP from the eyes to the language model."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, hidden)
        self.activation_fn = ACT2FN[activation]

    def forward(self, features_BND: Tensor) -> Tensor:
        """Features (B, N, D) -> (B, N, H)."""
        return self.fc2(self.activation_fn(self.fc1(features_BND)))


class PlaceTable(nn.Module):
    """A fixed vector for each place of a square grid: sines and cosines of column, then of row.

    As in DiT (arXiv 2212.09748): half of the width is the column's, half the row's.
    """

    def __init__(self, most: int, width: int) -> None:
        super().__init__()
        self.most, self.width = most, width
        self.pos_embed = nn.Parameter(torch.empty(most**2, width), requires_grad=False)

    def values(self) -> Tensor:
        """The table, (most * most, width), float32, on the CPU."""
        quarter = self.width // 4
        speed = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
        turn = torch.arange(self.most, dtype=torch.float64, device="cpu")[:, None] * speed
        wave = torch.cat([turn.sin(), turn.cos()], dim=1)
        column = wave[None].expand(self.most, -1, -1)
        row = wave[:, None].expand(-1, self.most, -1)
        return torch.cat([column, row], dim=-1).flatten(0, 1).float()

    def forward(self, places_N: Tensor) -> Tensor:
        """(N, width)."""
        return self.pos_embed[places_N]
