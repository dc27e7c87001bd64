"""Image processors, and their differentiable twins: resize, pad or crop, and normalise in torch.

An adversary's gradient must pass from what the vision encoder reads back to the drawn pixels, and a
PIL-based processor has none. A twin repeats its arithmetic on tensors; tests hold the two equal, up
to the rounding of the processor's 8-bit resize.

Shape suffixes: B samples, C channels, S side in px, h and w any height and width, I input and O
output length of a resized direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from unigame.data.images import DECODE_ERRORS, upright_rgb
from unigame.errors import UserError

_GREY = [127, 127, 127]
_LOBES = 3  # PIL's Lanczos
_LONGEST = 50  # sides above this ratio are cropped before the resize


# ---- processors ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pictures:
    """PIL images of any size -> (B, 3, S, S) in [0, 1] on the CPU, by the processor's own code.

    On the CPU wherever the model is, because forked loader workers must not touch a GPU.

    Attributes:
        image_processor: of transformers.
        crops: whether it resizes by the shortest side and crops the middle.
    """

    image_processor: Any
    crops: bool = False

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """See the class; raises what ``rgb_pictures`` does."""
        pictures, settings = rgb_pictures(images), {}
        if self.crops:
            pictures, settings = [_middle(each) for each in pictures], {"rescale_factor": 1 / 255}
        pixels = self.image_processor(
            images=pictures, do_normalize=False, return_tensors="pt", **settings
        )["pixel_values"]
        return pixels.to("cpu", torch.float32)


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


# ---- twins ---------------------------------------------------------------------------------------
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
    pictures: Callable[[Sequence[Image.Image]], Tensor]

    def __init__(self, image_processor: Any) -> None:
        super().__init__()
        self.pictures = Pictures(image_processor)
        self.image_size = int(image_processor.size["height"])
        self.min_size = int(image_processor.min_size)
        require_resampling(image_processor, Image.Resampling.BICUBIC)
        normalise = image_processor.do_normalize
        mean = image_processor.image_mean if normalise else [0.0] * 3
        std = image_processor.image_std if normalise else [1.0] * 3
        if not all(deviation > 0 for deviation in std):
            raise UserError(
                f"image processor has image_std={list(std)}, by which pixels are divided; give "
                "numbers above 0 in its configuration"
            )
        background = [c / 255 for c in image_processor.background_color]
        self._keep(mean_C11=mean, std_C11=std, background_C11=background)

    def _keep(self, **colours: Sequence[float]) -> None:
        for name, values in colours.items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def resize(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B, 3, S, S): longest side to S, centred on the background.

        Differentiable. Images that are S x S already are returned as they are.
        """
        height, width = images.shape[-2:]
        side = self.image_size
        if (height, width) == (side, side):
            return images
        scale = side / max(height, width)
        new = [max(round(length * scale), self.min_size) for length in (height, width)]
        resized = bicubic(images, *new)
        if new[0] == new[1]:
            return resized
        longest = max(new)
        top, left = (longest - new[0]) // 2, (longest - new[1]) // 2
        canvas = self.background_C11.to(resized).expand(len(images), 3, longest, longest).clone()
        canvas[:, :, top : top + new[0], left : left + new[1]] = resized
        return canvas

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> what the vision encoder and the image tokenizer read."""
        images = self.resize(images.to(self.mean_C11.device))
        return (images - self.mean_C11) / self.std_C11

    def unnormalise(self, pixels: Tensor) -> Tensor:
        """Decoder output -> images clamped to [0, 1], in float32 at least."""
        pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        return (pixels * self.std_C11 + self.mean_C11).clamp(0, 1)


class CroppingTwin(PixelTwin):
    """The twin of a processor that resizes the shortest side with Lanczos and crops the middle.

    Pixels are multiplied by ``rescale_factor`` (Chameleon's 0.0078 is a little less than 2 / 255)
    and shifted; the image decoder draws in exactly [-1, 1].

    Args:
        image_processor: of transformers, with ``crop_size`` and a ``shortest_edge``.
        image_size: side of the square that the image tokenizer was built for.

    Raises:
        UserError: the processor resizes or crops in another way than this twin repeats.
    """

    def __init__(self, image_processor: Any, image_size: int) -> None:
        nn.Module.__init__(self)  # not PixelTwin's, which reads settings that are not there
        self.pictures = Pictures(image_processor, crops=True)
        self.image_size = image_size
        crop, shortest = image_processor.crop_size, image_processor.size["shortest_edge"]
        if (shortest, crop["height"], crop["width"]) != (image_size,) * 3:
            raise UserError(
                f"the processor resizes to {shortest} px and crops to {crop['height']} x "
                f"{crop['width']} px, the model reads {image_size} px; load model and processor "
                "from the same checkpoint"
            )
        require_resampling(image_processor, Image.Resampling.LANCZOS)
        self.scale = 255 * float(image_processor.rescale_factor)
        self._keep(mean_C11=image_processor.image_mean, std_C11=image_processor.image_std)

    def resize(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B, 3, S, S): shortest side to S, cropped to the middle."""
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
        images = self.resize(images.to(self.mean_C11.device))
        return (images * self.scale - self.mean_C11) / self.std_C11

    def unnormalise(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        return ((pixels + 1) / 2).clamp(0, 1)


@dataclass(frozen=True)
class FittedPictures:
    """PIL images of any size -> (B, 3, h, w) in [0, 1] on the CPU, as large as fits, on mid-grey.

    Attributes:
        height: in px.
        width: in px.
    """

    height: int
    width: int

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """See the class; raises what ``rgb_pictures`` does."""
        fitted = [self._on_canvas(image) for image in rgb_pictures(images)]
        return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).float() / 255

    def _on_canvas(self, image: Image.Image) -> np.ndarray:
        top, left, height, width = fit(image.height, image.width, self.height, self.width)
        canvas = Image.new("RGB", (self.width, self.height), tuple(_GREY))
        canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        return np.asarray(canvas)


def fit(height: int, width: int, most_high: int, most_wide: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a picture in the middle of a box, as large as it fits."""
    scale = min(most_high / height, most_wide / width)
    high, wide = (max(1, round(side * scale)) for side in (height, width))
    return (most_high - high) // 2, (most_wide - wide) // 2, high, wide


class FittingTwin(PixelTwin):
    """The twin of ``FittedPictures``; pixels are normalised to [-1, 1].

    Args:
        height: in px.
        width: in px.
    """

    def __init__(self, height: int, width: int) -> None:
        nn.Module.__init__(self)  # not PixelTwin's: no image processor of transformers fits a box
        self.shape, self.image_size = (height, width), max(height, width)
        self.pictures = FittedPictures(height, width)
        background = [grey / 255 for grey in _GREY]
        self._keep(mean_C11=[0.5] * 3, std_C11=[0.5] * 3, background_C11=background)

    def resize(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B, 3, height, width), in the middle, on mid-grey.

        Differentiable. Images of that shape already are returned as they are.
        """
        height, width = images.shape[-2:]
        if (height, width) == self.shape:
            return images
        top, left, high, wide = fit(height, width, *self.shape)
        resized = bicubic(images, high, wide)
        canvas = self.background_C11.to(resized).expand(len(images), 3, *self.shape).clone()
        canvas[:, :, top : top + high, left : left + wide] = resized
        return canvas


def bicubic(images: Tensor, height: int, width: int) -> Tensor:
    """Resize as PIL does: one direction at a time, width first, overshoot clipped in between."""
    for size in ((images.shape[-2], width), (height, width)):
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    return images


def fitted_pixels(height: int, width: int) -> PixelTwin:
    """``square_pixels``, or its like for a rectangle: as large as fits, on mid-grey."""
    return square_pixels(height) if height == width else FittingTwin(height, width)


def square_pixels(
    side: int, mean: list[float] | None = None, std: list[float] | None = None
) -> PixelTwin:
    """Pictures as squares of ``side`` px, padded with mid-grey; by default to [-1, 1] for a VAE.

    For models whose processors keep a picture's shape, and for parts that each come with a resize
    of their own, some of which crop or squash: a question about a corner needs the corner.
    """
    return PixelTwin(
        JanusImageProcessorPil(
            size={"height": side, "width": side},
            min_size=1,
            image_mean=mean or [0.5] * 3,
            image_std=std or [0.5] * 3,
            background_color=_GREY,
        )
    )


def require_resampling(image_processor: Any, wanted: Image.Resampling) -> None:
    """Refuse a processor that resizes with another filter than a twin repeats."""
    if int(image_processor.resample) != int(wanted):
        name = wanted.name.lower()
        raise UserError(
            f"image processor resamples with mode {image_processor.resample}; only {name} "
            f"({int(wanted)}) has a differentiable twin here: set 'resample': {int(wanted)} in its "
            "configuration"
        )


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
