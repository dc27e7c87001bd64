"""Common corruptions at five severities: noise, blur, contrast, JPEG, occlusion.

Noise, contrast and JPEG quality have the figures of ImageNet-C (Hendrycks and Dietterich, ICLR
2019, arXiv 1903.12261). The width of the blur is a fraction of the picture's side (1.8 to 6.7 px at
224 px, the range of theirs), and the occluding rectangle a fraction of its area, so that a severity
means the same at 48 px and at 384 px. JPEG works on blocks of 8 px at any size, so it costs a small
picture more.

What is random depends on the item and the kind alone: the same noise grows with the severity, the
same square grows in its place. So severities are ordered for each picture, and every model sees
the same pictures.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from unigame.data.images import decode_image
from unigame.errors import UserError

Pixels = NDArray[np.uint8]
"""A picture, (h, w, 3)."""

SEVERITIES = (1, 2, 3, 4, 5)
NOISE_SIGMA = (0.08, 0.12, 0.18, 0.26, 0.38)  # of the range of a pixel
BLUR_SIGMA = (0.008, 0.012, 0.016, 0.022, 0.03)  # of the shorter side
CONTRAST_KEPT = (0.4, 0.3, 0.2, 0.1, 0.05)
JPEG_QUALITY = (25, 18, 15, 10, 7)
OCCLUDED_AREA = (0.05, 0.1, 0.2, 0.3, 0.4)
_GREY = 128


def noise(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Independent Gaussian noise on every value."""
    field = rng.standard_normal(pixels.shape)
    return _pixels(pixels + 255 * NOISE_SIGMA[severity - 1] * field)


def blur(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Gaussian blur."""
    radius = BLUR_SIGMA[severity - 1] * min(pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def contrast(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Every channel drawn toward its mean."""
    mean = pixels.mean(axis=(0, 1))
    return _pixels(mean + CONTRAST_KEPT[severity - 1] * (pixels - mean))


def jpeg(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Compression at low quality."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=JPEG_QUALITY[severity - 1])
    return np.asarray(decode_image(file.getvalue()))


def occlusion(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """A grey rectangle of the picture's shape, somewhere in it."""
    share = OCCLUDED_AREA[severity - 1] ** 0.5
    sizes = [max(1, round(share * length)) for length in pixels.shape[:2]]
    # The place is a share of the room left over, so a larger rectangle covers a smaller one.
    places = rng.random(2)
    top, left = (
        round(place * (length - size))
        for place, length, size in zip(places, pixels.shape[:2], sizes, strict=True)
    )
    occluded = pixels.copy()
    occluded[top : top + sizes[0], left : left + sizes[1]] = _GREY
    return occluded


CORRUPTIONS: dict[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "jpeg": jpeg,
    "occlusion": occlusion,
}


def corrupt(pixels: Pixels, name: str, severity: int, key: str) -> Pixels:
    """One picture, corrupted.

    Args:
        pixels: (h, w, 3), 8 bits.
        name: of ``CORRUPTIONS``.
        severity: 1 (mild) to 5.
        key: of the item: the same key, the same noise and the same place.

    Raises:
        UserError: an unknown corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise UserError(f"unknown corruption {name!r}; choose from {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UserError(f"severity {severity} of {name}: give a whole number from 1 to 5")
    return CORRUPTIONS[name](pixels, severity, item_rng(name, key))


def item_rng(*keys: str) -> np.random.Generator:
    """A generator of its own for an item and a purpose, the same on every machine."""
    digest = hashlib.sha256("\0".join(keys).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _pixels(values: NDArray[np.float64]) -> Pixels:
    return values.round().clip(0, 255).astype(np.uint8)
