"""Emu3's VQ tokenizer for still pictures: pixels -> latents -> codes, and vectors -> pixels.

The tokenizer is made for video. The class repeats a picture four times, encodes the four frames,
and of the four that it decodes keeps the first. Here the layers that see one frame at a time get
one frame, which gives the same numbers for a quarter of the work and memory.

Shape suffixes: B samples, N codes of a picture, E code width, S side of the picture in px, h side
of its grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def encode(vq: Any, pixels_B3SS: Tensor) -> Tensor:
    """Normalised pixels -> latents (B, N, E) before quantisation, row by row. Differentiable.

    Args:
        vq: an ``Emu3VQVAE``.
        pixels_B3SS: normalised pixels in the type of its weights.
    """
    encoder = vq.encoder
    hidden = encoder.conv_in(pixels_B3SS)
    hidden = encoder.middle_block(encoder.down_block(hidden))
    hidden = _swish(encoder.norm_out(hidden))
    # The convolutions over time see the four frames that the class makes of a picture.
    frames = vq.config.temporal_downsample_factor
    hidden = encoder.conv_out(hidden).unsqueeze(2).expand(-1, -1, frames, -1, -1)
    for conv in encoder.time_conv:
        hidden = _swish(conv(hidden))
    for layer in encoder.time_res_stack:
        hidden = layer(hidden)
    return vq.quant_conv(hidden).squeeze(2).flatten(2).transpose(1, 2)


def decode(vq: Any, vectors_BNE: Tensor, grid: int) -> Tensor:
    """Codebook vectors -> normalised pixels (B, 3, S, S). Differentiable.

    Args:
        vq: an ``Emu3VQVAE``.
        vectors_BNE: vectors of N = grid x grid codes, row by row.
        grid: h.
    """
    decoder = vq.decoder
    quant_BE1hh = vectors_BNE.transpose(1, 2).unflatten(2, (1, grid, grid))
    hidden = torch.cat([vq.post_quant_conv(quant_BE1hh), quant_BE1hh])
    for layer in decoder.time_res_stack:
        hidden = layer(hidden)
    for conv in decoder.time_conv:
        hidden = _swish(conv(hidden))
    hidden, quant = hidden[:, :, 0].chunk(2)
    hidden = decoder.middle_block(decoder.conv_in(hidden), quant)
    hidden = _swish(decoder.norm_out(decoder.up_block(hidden, quant), quant))
    return decoder.conv_out(hidden)


def _swish(hidden: Tensor) -> Tensor:
    return hidden * torch.sigmoid(hidden)
