"""Decoding: upright RGB, or a clear reason why not."""

import ast
import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unigame
from tests.data.files import BLUE, GREEN, RED, color_of, jpeg, png
from unigame.data.images import CORRUPT, MISSING, CorruptImage, decode_image, read_file, upright_rgb


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """A corner-marked picture is stored turned; decoding must bring the corner back."""
    upright = Image.new("RGB", (32, 16), RED)
    upright.paste(BLUE, (0, 0, 8, 8))
    undo = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = upright
    for turn in undo:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(saved(stored, "PNG", exif=exif))
    assert decoded.size == (32, 16)
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(upright))


def test_transparency_goes_on_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    decoded = decode_image(saved(image))
    assert decoded.mode == "RGB"
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 0)) == pytest.approx((127, 127, 127), abs=1)
    assert decoded.getpixel((2, 2)) == (255, 0, 0)


def test_palette_with_transparent_colour_and_grey_with_alpha():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 20, 220, 20])
    palette.putpixel((0, 0), 0)
    decoded = decode_image(saved(palette, transparency=0))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((2, 2)) == GREEN
    grey = decode_image(saved(Image.new("LA", (4, 4), (10, 0))))
    assert grey.getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_jpeg_becomes_rgb():
    decoded = decode_image(jpeg(color=(0, 255, 255, 0), mode="CMYK"))
    assert decoded.mode == "RGB"
    assert color_of(decoded) == "red"


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257 * 100, 65_535]], dtype=np.uint16)
    decoded = decode_image(saved(Image.fromarray(values)))
    assert [decoded.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_truncated_garbage_and_empty_files_are_corrupt():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = saved(Image.fromarray(noise), kind)
        assert decode_image(whole).size == (64, 64)
        for share in (0.3, 0.9):
            with pytest.raises(CorruptImage) as caught:
                decode_image(whole[: int(len(whole) * share)])
            assert caught.value.reason == CORRUPT
    for data in (b"", b"<html>404</html>"):
        with pytest.raises(CorruptImage, match="corrupt image"):
            decode_image(data)


def test_decompression_bomb_is_corrupt_before_its_pixels_are_unpacked(monkeypatch):
    monkeypatch.setattr("unigame.data.images.MAX_PIXELS", 47)
    loaded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: loaded.append(self))
    with pytest.raises(CorruptImage, match="8 x 6 pixels"):
        decode_image(png())
    assert not loaded


def test_pillows_own_bomb_error_is_corrupt_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(CorruptImage, match="decompression bomb"):
        decode_image(png())


def test_float_pixels_have_no_defined_colour():
    with pytest.raises(CorruptImage, match="floating-point"):
        decode_image(saved(Image.new("F", (4, 4), 0.5), "TIFF"))


@pytest.mark.parametrize("kind", [np.int32, np.int16])
def test_integers_of_an_unknown_range_have_no_defined_colour(kind):
    data = saved(Image.fromarray(np.arange(64, dtype=kind).reshape(8, 8)), "TIFF")
    with pytest.raises(CorruptImage, match="of an unknown range; convert the file to 8-bit"):
        decode_image(data)


def test_whatever_a_decoder_raises_is_the_pictures_own_fault(monkeypatch):
    def broken(self):
        raise RuntimeError("Failed to decode frame 0")  # a damaged AVIF

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    with pytest.raises(CorruptImage, match="frame 0"):
        decode_image(png())


def test_missing_file_is_missing_but_a_sick_file_system_is_not(tmp_path, monkeypatch):
    with pytest.raises(CorruptImage) as caught:
        read_file(tmp_path / "no.jpg")
    assert caught.value.reason == MISSING

    def too_many(self):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("pathlib.Path.read_bytes", too_many)
    with pytest.raises(OSError, match="Too many open files"):
        read_file(tmp_path / "a.jpg")


def test_corrupt_image_survives_pickling_out_of_a_worker():
    error = pickle.loads(pickle.dumps(CorruptImage("row7", CORRUPT, "cut")))
    assert (error.id, error.reason, error.detail) == ("row7", CORRUPT, "cut")
    assert str(error) == "corrupt image in row 'row7': cut"


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FORMATS = {
    "JPEG": {"quality": 95},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "PNG": {},
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_picture_is_turned_exactly_once_in_every_format(kind, orientation):
    """Also where it is made upright again: what is decoded carries no EXIF any more."""
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (0, 0, 16, 16))
    data = saved(image, kind.split()[0], exif=exif_of(orientation), **FORMATS[kind])
    decoded = decode_image(data)
    turned = {3: (60, 28), 6: (28, 4), 8: (4, 60)}[orientation]
    assert color_of(decoded, turned) == "blue"
    again = upright_rgb(decoded)
    assert again is decoded  # nothing to do
    lazily = upright_rgb(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(lazily), np.asarray(decoded))


def test_pictures_of_every_mode_become_rgb():
    for mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"):
        got = upright_rgb(Image.new(mode, (5, 4)))
        assert (got.mode, got.size, got.info) == ("RGB", (5, 4), {}), mode
    for mode in ("I", "I;16", "I;16L", "I;16B"):
        grey = Image.new(mode, (5, 4), 257 * 90)
        assert upright_rgb(grey).getpixel((0, 0)) == (90, 90, 90), mode


def test_a_transparent_grey_of_sixteen_bits_is_white():
    values = np.array([[1000, 257 * 100]], dtype=np.uint16)
    decoded = decode_image(saved(Image.fromarray(values), transparency=1000))
    assert [decoded.getpixel((x, 0)) for x in range(2)] == [(255,) * 3, (100,) * 3]


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (8, 8), color) for color in (GREEN, RED, BLUE)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert color_of(decode_image(data)) == "green"


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ValueError, match="0 x 5"):
        upright_rgb(Image.new("RGB", (0, 5)))


def test_no_other_module_opens_pictures():
    """One decoder: whoever calls Image.open forgets EXIF, transparency or 16 bits."""
    package = Path(unigame.__file__).parent
    opening = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("Image.open", "PIL.Image.open")
    }
    # Reports and trackers read the pictures that a run of ours wrote, and know no data.
    ours = {"reports/page/pictures.py", "methods/selfplay/examples.py"}
    assert opening == {"data/images.py", *ours}


def test_a_large_picture_is_one_reason_and_no_warning(monkeypatch):
    """Between its two limits Pillow only warns: two lines on stderr beside our one."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr("unigame.data.images.MAX_PIXELS", 100)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(CorruptImage, match="15 x 10 pixels, more than 100"):
            decode_image(saved(Image.new("RGB", (15, 10), RED)))
    assert not warned


@pytest.mark.parametrize("data", [b"", b"<html>404</html>"])
def test_why_a_file_is_no_picture_is_the_same_in_every_run(data):
    with pytest.raises(CorruptImage) as caught:
        decode_image(data)
    assert "BytesIO" not in caught.value.detail
    assert "kind of picture" in caught.value.detail
