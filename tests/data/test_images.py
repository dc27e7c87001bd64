"""Decoding: upright RGB, or a clear reason why not."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.data.files import BLUE, GREEN, RED, color_of, jpeg, png
from unigame.data.images import CORRUPT, MISSING, CorruptImage, decode_image, read_file


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
