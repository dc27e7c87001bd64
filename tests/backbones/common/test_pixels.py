"""The differentiable twin equals the image processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unigame.backbones.common.pixels import PixelTwin
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
