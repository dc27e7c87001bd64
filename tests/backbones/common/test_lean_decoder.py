"""The lean image decoder: transformers' pictures and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

from tests.tiny import random_images, tiny_backbone
from unigame.backbones.common.fast import lean_decoder


def decoder(**settings) -> JanusVQVAEDecoder:
    torch.manual_seed(0)
    config = JanusVQVAEConfig(
        **{
            "base_channels": 32,
            "latent_channels": 16,
            "channel_multiplier": [1, 2, 2],
            "num_res_blocks": 1,
            **settings,
        }
    )
    model = JanusVQVAEDecoder(config).eval().requires_grad_(False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or weight.dim() == 1:
                weight.add_(0.3 * torch.randn_like(weight))
    return model.double()


@pytest.mark.parametrize("settings", [{}, {"channel_multiplier": [1, 1], "num_res_blocks": 0}])
def test_pictures_and_gradients_are_those_of_the_class(settings):
    model = decoder(**settings)
    latents = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    probe = None
    found = {}
    for name, draw in (("class", model), ("lean", lambda x: lean_decoder.decode(model, x))):
        own = latents.clone().requires_grad_()
        pixels = draw(own)
        probe = torch.randn_like(pixels) if probe is None else probe
        (gradient,) = torch.autograd.grad((pixels * probe).sum(), own)
        found[name] = (pixels.detach(), gradient)
    torch.testing.assert_close(found["lean"], found["class"], rtol=1e-10, atol=1e-10)
    assert found["class"][1].abs().max() > 1e-3


@pytest.mark.parametrize("bias", [True, False])
def test_upsampling_is_doubling_and_then_convolving(bias: bool):
    conv = torch.nn.Conv2d(3, 5, 3, padding=1, bias=bias).double()
    grid = torch.randn(2, 3, 4, 7, dtype=torch.float64)
    expected = conv(F.interpolate(grid, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(lean_decoder.upsample(conv, grid), expected)


def test_the_switch_draws_with_the_class_and_the_pictures_are_the_same(monkeypatch):
    backbone = tiny_backbone()
    codes = backbone.encode_images(random_images(2))
    lean = backbone.render(codes)
    monkeypatch.setattr(lean_decoder, "decode", lambda *_: pytest.fail("switched off"))
    backbone.lean_drawing = False
    torch.testing.assert_close(backbone.render(codes), lean, rtol=0, atol=1e-5)
