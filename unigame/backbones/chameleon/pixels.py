"""Chameleon's image processor and its differentiable twin: resize, crop and scale in torch.

Pictures are resized by their shortest side with a Lanczos filter and cropped to the middle square.
Then they are multiplied by ``rescale_factor`` (0.0078 for the published checkpoints, a little less
than 2 / 255) and shifted to about [-1, 1]; the image decoder draws in exactly [-1, 1].

Shape suffixes: B samples, C channels, S side in px, h and w any height and width, I input and O
output length of a resized direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ChameleonProcessor
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from unigame.backbones.common.pixels import Pictures, PixelTwin, rgb_pictures
from unigame.errors import UserError

_LOBES = 3  # PIL's Lanczos
_LONGEST = 50  # sides above this ratio are cropped before the resize


class ChameleonPictures(Pictures):
    """The same with Chameleon's crop and scale."""

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """See ``Pictures``."""
        pixels = self.image_processor(
            images=[_middle(image) for image in rgb_pictures(images)],
            do_normalize=False,
            rescale_factor=1 / 255,
            return_tensors="pt",
        )["pixel_values"]
        return pixels.to("cpu", torch.float32)


class ChameleonPixels(PixelTwin):
    """Images in [0, 1] <-> the pixels that Chameleon's image tokenizer reads and draws.

    Args:
        image_processor: a ``ChameleonImageProcessorPil``.
        image_size: side of the square that the image tokenizer was built for.

    Raises:
        UserError: the processor resizes or crops in another way than this twin repeats.
    """

    def __init__(self, image_processor: Any, image_size: int) -> None:
        nn.Module.__init__(self)  # not PixelTwin's, which reads settings that Chameleon lacks
        self.pictures = ChameleonPictures(image_processor)
        self.image_size = image_size
        crop, shortest = image_processor.crop_size, image_processor.size["shortest_edge"]
        if (shortest, crop["height"], crop["width"]) != (image_size,) * 3:
            raise UserError(
                f"the processor resizes to {shortest} px and crops to {crop['height']} x "
                f"{crop['width']} px, the model reads {image_size} px; load model and processor "
                "from the same checkpoint"
            )
        if int(image_processor.resample) != int(Image.Resampling.LANCZOS):
            raise UserError(
                f"image processor resamples with mode {image_processor.resample}; only Lanczos (1) "
                "has a differentiable twin here: set 'resample': 1 in its configuration"
            )
        self.scale = 255 * float(image_processor.rescale_factor)
        for name, values in (
            ("mean_C11", image_processor.image_mean),
            ("std_C11", image_processor.image_std),
        ):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def resize_and_pad(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B, 3, S, S): shortest side to S, cropped to the middle.

        Nothing is padded. Differentiable; images that are S x S already are returned as they are.
        """
        height, width = images.shape[-2:]
        side = self.image_size
        if (height, width) == (side, side):
            return images
        short = min(height, width)
        new_height, new_width = (int(side * length / short) for length in (height, width))
        # Width first, as PIL does; it clips the overshoot in between.
        images = (images @ lanczos(width, new_width).to(images).T).clamp(0, 1)
        images = (lanczos(height, new_height).to(images) @ images).clamp(0, 1)
        top, left = (new_height - side) // 2, (new_width - side) // 2
        return images[..., top : top + side, left : left + side]

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> what the image tokenizer reads."""
        images = self.resize_and_pad(images.to(self.mean_C11.device))
        return (images * self.scale - self.mean_C11) / self.std_C11

    def unnormalise(self, pixels: Tensor) -> Tensor:
        """Decoder output in [-1, 1] -> images clamped to [0, 1], in float32 at least."""
        pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        return ((pixels + 1) / 2).clamp(0, 1)


def _middle(image: Image.Image) -> Image.Image:
    """The middle of a picture that is longer than any: the rest is cropped anyway, once resized.

    A line of 20,000 x 1 px would first become one of 10 million x 512 px.
    """
    width, height = image.size
    longest = _LONGEST * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(width - longest, 0) // 2, max(height - longest, 0) // 2
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def lanczos(length: int, new_length: int) -> Tensor:
    """Weights (O, I) by which PIL resizes one direction: windowed sinc, wider when it shrinks."""
    scale = length / new_length
    stretch = max(scale, 1.0)
    centre_O1 = (torch.arange(new_length, dtype=torch.float64)[:, None] + 0.5) * scale
    offset_OI = torch.arange(length, dtype=torch.float64) + 0.5 - centre_O1
    reach = _LOBES * stretch
    first_O1 = (centre_O1 - reach + 0.5).floor().clamp(min=0)
    last_O1 = (centre_O1 + reach + 0.5).floor().clamp(max=length)
    index_I = torch.arange(length, dtype=torch.float64)
    inside_OI = (index_I >= first_O1) & (index_I < last_O1)
    distance_OI = (offset_OI / stretch) * math.pi
    weights_OI = torch.sinc(distance_OI / math.pi) * torch.sinc(distance_OI / math.pi / _LOBES)
    weights_OI = weights_OI * inside_OI * (distance_OI.abs() < _LOBES * math.pi)
    return weights_OI / weights_OI.sum(-1, keepdim=True)


def load_processor(name_or_path: str | Path) -> ChameleonProcessor:
    """The processor of a checkpoint, always with the PIL image processor (see Janus's)."""
    processor = ChameleonProcessor.from_pretrained(name_or_path)
    if not isinstance(processor.image_processor, ChameleonImageProcessorPil):
        processor.image_processor = ChameleonImageProcessorPil.from_pretrained(name_or_path)
    return processor
