"""From the bytes of an image file to an upright RGB picture, or a clear reason why not."""

from __future__ import annotations

import errno
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

MISSING = "missing image"
CORRUPT = "corrupt image"

MAX_PIXELS = 89_478_485
"""Larger pictures count as decompression bombs (the level at which Pillow itself warns)."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

IMAGE_COLUMNS = (
    "image",
    "image_path",
    "file_name",
    "filename",
    "path",
    "jpg",
    "jpeg",
    "png",
    "webp",
)
"""Columns in which a row's picture is looked for; the first present one wins."""

# Everything that Pillow's decoders are known to raise on damaged input.
DECODE_ERRORS = (
    OSError,  # also UnidentifiedImageError and truncated files
    SyntaxError,
    RuntimeError,  # a damaged AVIF
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class CorruptImage(Exception):
    """The picture of one row cannot be had; the row must be dropped, never given another picture.

    Attributes:
        id: The row's id, or "" where the caller did not know it.
        reason: ``"missing image"`` or ``"corrupt image"``: what a :class:`SkipReport` counts.
        detail: What exactly went wrong, for people.
    """

    def __init__(self, id: str, reason: str, detail: str) -> None:
        # All three go to Exception.args, so that the error survives the way out of a worker.
        super().__init__(id, reason, detail)
        self.id, self.reason, self.detail = id, reason, detail

    def __str__(self) -> str:
        return f"{self.reason} in row {self.id!r}: {self.detail}"


def read_file(path: str | Path) -> bytes:
    """The bytes of an image file.

    Raises:
        CorruptImage: There is no such file, or no file can have that name. Other failures of the
            file system (permissions, too many open files) are not the picture's fault and stay
            ``OSError``.
    """
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
        raise CorruptImage("", MISSING, f"no file {str(path)!r:.300}") from error
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise CorruptImage("", MISSING, f"no file {str(path)!r:.300}") from error


def decode_image(data: bytes) -> Image.Image:
    """Decode fully, turn upright by EXIF, put transparency on white, convert to RGB.

    Of an animation the first frame is taken.

    Raises:
        CorruptImage: Not an image, truncated, larger than :data:`MAX_PIXELS`, or of a kind without
            a defined way to 8-bit RGB (TIFF of floating-point or 32-bit integer pixels).
    """
    try:
        with warnings.catch_warnings():
            # upright_rgb refuses what Pillow only warns of.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        with image:
            return upright_rgb(image)
    except UnidentifiedImageError as error:
        # Pillow's own words hold the address of a buffer, other ones in each run.
        raise CorruptImage("", CORRUPT, "no kind of picture that Pillow knows") from error
    except DECODE_ERRORS as error:
        detail = str(error) or type(error).__name__
        raise CorruptImage("", CORRUPT, detail) from error


def load_image(path: str | Path) -> Image.Image:
    """:func:`decode_image` of a file: what every picture that a user names goes through.

    Raises:
        CorruptImage: There is no such file, or it cannot be decoded.
        OSError: The file may not be read.
    """
    return decode_image(read_file(path))


def upright_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image: upright by its EXIF, transparency on white, RGB, without metadata.

    Raises:
        ValueError: More than :data:`MAX_PIXELS`, no pixel at all, or pixels that have no defined
            way to 8-bit RGB.
        OSError: A file that Pillow opened and cannot decode; it may raise others, too.
    """
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    if not image.width * image.height:
        raise ValueError(f"{image.width} x {image.height} pixels, none to look at")
    image.load()
    if type(image) is Image.Image and image.mode == "RGB" and not image.info:
        return image  # what decode_image gave: nothing to turn, nothing to convert
    # Not ImageOps.exif_transpose: it rewrites the EXIF block, and fails on odd ones.
    orientation = image.getexif().get(_EXIF_ORIENTATION)
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    rgb = to_rgb(image)
    upright = rgb if turn is None else rgb.transpose(turn)
    upright.info = {}  # with its EXIF, someone would turn it once more
    return upright


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB; transparent pixels on white, 16-bit grey scaled to 8 bits.

    Raises:
        ValueError: A floating-point image or a TIFF of 32-bit integers (signed 16-bit ones, too),
            whose range of values is unknown.
    """
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise ValueError(f"{kind} pixels, of an unknown range; convert the file to 8-bit RGB")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if not has_alpha:
        # A new object without the file's metadata, also where the mode is RGB already.
        rgb = image.convert("RGB")
        return rgb if rgb is not image else image.copy()
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits; Pillow would clip everything above 255 to white."""
    grey_HW = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
    # One grey value may stand for "transparent"; a file can also claim bytes, which grey has not.
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        grey_HW = np.where(grey_HW == hidden, 65_535, grey_HW)
    return Image.fromarray((grey_HW // 257).astype(np.uint8)).convert("RGB")
