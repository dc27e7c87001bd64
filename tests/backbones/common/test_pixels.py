"""The differentiable twin equals the image processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unigame.backbones.common.pixels import PixelTwin, fit, fitted_pixels
from unigame.backbones.janus.layout import build_processor
from unigame.errors import UserError


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


@pytest.fixture(scope="module")
def processor():  # type: ignore[no-untyped-def]
    return build_processor(["red"], 24, 36).image_processor


@pytest.fixture(scope="module")
def twin(processor) -> PixelTwin:  # type: ignore[no-untyped-def]
    return PixelTwin(processor)


@pytest.mark.parametrize("size", [(24, 24), (60, 60), (61, 33), (19, 40), (10, 7), (200, 3)])
def test_twin_repeats_the_processors_pixels(processor, twin, size) -> None:  # type: ignore[no-untyped-def]
    image = picture(*size)
    expected = processor([image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(twin.normalise(twin.pictures([image])), expected)
    # The processor rounds to 8 bits after its resize, once per direction: two grey levels.
    difference = (twin.normalise(tensor(image)) - expected).abs().max() * 0.5 * 255
    assert difference <= 2.01


@pytest.mark.parametrize(
    "size", [(48, 24), (96, 48), (60, 60), (19, 40), (33, 10), (500, 1), (1, 9)]
)
def test_a_picture_is_fitted_into_a_rectangle(size: tuple[int, int]) -> None:
    image, pixels = picture(*size), fitted_pixels(24, 48)
    expected = pixels.pictures([image])
    assert expected.shape == (1, 3, 24, 48)
    assert (pixels.resize(tensor(image)) - expected).abs().max() * 255 <= 2.01
    assert torch.equal(pixels.resize(expected), expected)
    top, left, height, width = fit(image.height, image.width, 24, 48)
    own = torch.zeros(24, 48, dtype=torch.bool)
    own[top : top + height, left : left + width] = True
    assert (height == 24 or width == 48) and min(height, width) >= 1
    assert (expected[0, :, ~own] == 127 / 255).all()
    assert abs(2 * top + height - 24) <= 1 and abs(2 * left + width - 48) <= 1  # in the middle


def test_a_rectangle_keeps_the_contract_of_a_square() -> None:
    pixels = fitted_pixels(24, 48)
    with pytest.raises(UserError, match="list of PIL images"):
        pixels.pictures(picture(9, 9))  # type: ignore[arg-type]
    images = tensor(picture(48, 24)).requires_grad_()
    torch.testing.assert_close(pixels.unnormalise(pixels.normalise(images)), images)
    pixels.normalise(tensor(picture(61, 33)).requires_grad_()).sum().backward()
    assert type(fitted_pixels(24, 24)) is PixelTwin


def test_same_size_images_pass_unchanged(twin: PixelTwin) -> None:
    image = picture(24, 24)
    assert torch.equal(twin.pictures([image]), tensor(image))
    assert torch.equal(twin.resize(tensor(image)), tensor(image))


def test_grey_pictures_become_rgb(twin: PixelTwin) -> None:
    pixels = twin.pictures([Image.new("L", (24, 24), 100), Image.new("RGBA", (30, 24))])
    assert pixels.shape == (2, 3, 24, 24)
    assert torch.allclose(pixels[0], torch.tensor(100 / 255))


def test_gradients_pass_the_twin(twin: PixelTwin) -> None:
    images = tensor(picture(61, 33)).requires_grad_()
    twin.normalise(images).square().sum().backward()
    assert images.grad is not None and (images.grad != 0).float().mean() > 0.95


def test_unnormalise_undoes_normalise_and_clamps(twin: PixelTwin) -> None:
    images = tensor(picture(24, 24))
    torch.testing.assert_close(twin.unnormalise(twin.normalise(images)), images)
    far = twin.unnormalise(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1).expand(2, 3, 24, 24))
    assert far[0].max() == 0 and far[1].min() == 1


def test_without_normalisation_pixels_are_the_image(processor) -> None:  # type: ignore[no-untyped-def]
    plain = build_processor(["red"], 24, 36).image_processor
    plain.do_normalize = False
    images = tensor(picture(24, 24))
    assert torch.equal(PixelTwin(plain).normalise(images), images)


def test_another_resampling_is_refused() -> None:
    processor = build_processor(["red"], 24, 36).image_processor
    processor.resample = Image.Resampling.NEAREST
    with pytest.raises(UserError, match="only bicubic"):
        PixelTwin(processor)
