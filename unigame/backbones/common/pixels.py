"""The image processor's differentiable twin: resize, pad and normalise in torch.

An adversary's gradient must pass from what the vision encoder reads back to the drawn pixels, and a
PIL-based processor has none. ``PixelTwin`` repeats its arithmetic on tensors; tests hold the two
equal, up to the rounding of the processor's 8-bit resize.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from unigame.data.images import DECODE_ERRORS, upright_rgb
from unigame.errors import UserError


def rgb_pictures(images: Sequence[Image.Image]) -> list[Image.Image]:
    """What ``preprocess`` takes, as the data readers give it: upright RGB, no transparency.

    Pillow's own ``convert("RGB")`` shows the hidden colour of transparent pixels, clips 16-bit grey
    to white and leaves rotated photos lying.

    Raises:
        UserError: no list, something that is no Pillow image, or an image without a way to RGB.
    """
    if isinstance(images, Image.Image | str | bytes) or not isinstance(images, Sequence):
        raise UserError(
            f"preprocess takes a list of PIL images, got {type(images).__name__}; put a single "
            "picture in a list"
        )
    return [_rgb(image, number) for number, image in enumerate(images)]


def _rgb(image: object, number: int) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise UserError(
            f"picture {number} is {type(image).__name__}, but preprocess takes PIL images; open "
            "files with unigame.data.load_image, and arrays with PIL.Image.fromarray"
        )
    try:
        return upright_rgb(image)
    except DECODE_ERRORS as error:
        raise UserError(
            f"picture {number} ({image.mode}, {image.width} x {image.height} px) has no way to "
            f"8-bit RGB: {error}"
        ) from error


@dataclass(frozen=True)
class Pictures:
    """PIL images of any size -> (B, 3, S, S) in [0, 1] on the CPU, by the processor's own code.

    On the CPU wherever the model is, because forked loader workers must not touch a GPU.
    """

    image_processor: Any

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """See the class."""
        pixels = self.image_processor(
            images=rgb_pictures(images), do_normalize=False, return_tensors="pt"
        )["pixel_values"]
        return pixels.to("cpu", torch.float32)


class PixelTwin(nn.Module):
    """Images in [0, 1] <-> the normalised pixels of one checkpoint's image processor.

    Args:
        image_processor: a transformers image processor with a square ``size``, bicubic resampling,
            ``image_mean``, ``image_std``, ``min_size`` and ``background_color``.

    Raises:
        UserError: the processor resizes in another way than this twin repeats.
    """

    mean_C11: Tensor
    std_C11: Tensor
    background_C11: Tensor

    def __init__(self, image_processor: Any) -> None:
        super().__init__()
        self.pictures = Pictures(image_processor)
        self.image_size = int(image_processor.size["height"])
        self.min_size = int(image_processor.min_size)
        if int(image_processor.resample) != int(Image.Resampling.BICUBIC):
            raise UserError(
                f"image processor resamples with mode {image_processor.resample}; only bicubic (3) "
                "has a differentiable twin: set 'resample': 3 in its configuration"
            )
        normalise = image_processor.do_normalize
        mean = image_processor.image_mean if normalise else [0.0] * 3
        std = image_processor.image_std if normalise else [1.0] * 3
        if not all(deviation > 0 for deviation in std):
            raise UserError(
                f"image processor has image_std={list(std)}, by which pixels are divided; give "
                "numbers above 0 in its configuration"
            )
        background = [c / 255 for c in image_processor.background_color]
        for name, values in (("mean_C11", mean), ("std_C11", std), ("background_C11", background)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def resize_and_pad(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B, 3, S, S): longest side to S, centred on the background.

        Differentiable. Images that are S x S already are returned as they are.
        """
        height, width = images.shape[-2:]
        side = self.image_size
        if (height, width) == (side, side):
            return images
        scale = side / max(height, width)
        new = [max(round(length * scale), self.min_size) for length in (height, width)]
        # One direction at a time, width first, as PIL does: it clips the overshoot in between.
        resized = images
        for size in ((height, new[1]), (new[0], new[1])):
            resized = F.interpolate(resized, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        if new[0] == new[1]:
            return resized
        longest = max(new)
        top, left = (longest - new[0]) // 2, (longest - new[1]) // 2
        canvas = self.background_C11.to(resized).expand(len(images), 3, longest, longest).clone()
        canvas[:, :, top : top + new[0], left : left + new[1]] = resized
        return canvas

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> what the vision encoder and the image tokenizer read."""
        images = self.resize_and_pad(images.to(self.mean_C11.device))
        return (images - self.mean_C11) / self.std_C11

    def unnormalise(self, pixels: Tensor) -> Tensor:
        """Decoder output -> images clamped to [0, 1], in float32 at least."""
        pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        return (pixels * self.std_C11 + self.mean_C11).clamp(0, 1)
