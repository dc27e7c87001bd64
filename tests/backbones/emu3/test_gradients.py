"""Emu3's two discrete steps: straight-through in use, exact where both are made smooth."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.tiny import random_images
from tests.tiny_emu3 import tiny_emu3
from unigame.backbones.common import codes as reading
from unigame.backbones.common.codes import nearest_codes, read_codes, soft_codes
from unigame.backbones.emu3.model import Emu3Backbone

QUESTIONS, ANSWERS = ["what colour is the circle"], ["red"]
PROMPTS = ["a red circle"]
SIDE, GRID = 24, 3


@pytest.fixture(scope="module")
def precise() -> Emu3Backbone:
    """In float64, where finite differences mean something."""
    return tiny_emu3().double()


def random_parts() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents, codebook, table = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 5, 4), (32, 4), (32, 6))
    )
    return latents, codebook, table


# ---- reading.py --------------------------------------------------------------------------------
def test_the_nearest_code_is_the_nearest() -> None:
    latents, codebook, _ = random_parts()
    codes = nearest_codes(latents, codebook)
    expected = torch.cdist(latents, codebook.expand(2, -1, -1)).argmin(-1)
    assert torch.equal(codes, expected)
    assert torch.equal(nearest_codes(codebook[None], codebook)[0], torch.arange(32))


@pytest.mark.parametrize("pairs", [1, 32 * 3, 1 << 27])
def test_reading_is_hard_forward_and_soft_backward(
    monkeypatch: pytest.MonkeyPatch, pairs: int
) -> None:
    monkeypatch.setattr(reading, "PAIRS", pairs)  # all at once, in threes, one by one
    latents, codebook, table = random_parts()
    weight = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    latents.requires_grad_()
    embeds = table[nearest_codes(latents, codebook)]
    read = read_codes(embeds, latents, codebook, table)
    assert torch.equal(read, embeds)
    (ours,) = torch.autograd.grad((read * weight).sum(), [latents])
    (soft,) = torch.autograd.grad((soft_codes(latents, codebook, table) * weight).sum(), [latents])
    torch.testing.assert_close(ours, soft)
    assert (ours.abs().sum(-1) > 0).all()


def test_a_handful_of_codes_share_the_soft_choice() -> None:
    generator = torch.Generator().manual_seed(3)
    codebook = torch.randn(512, 4, generator=generator, dtype=torch.float64)
    latents = torch.randn(1, 50, 4, generator=generator, dtype=torch.float64)
    weights = soft_codes(latents, codebook, torch.eye(512, dtype=torch.float64))
    shared_by = (-weights * weights.clamp(min=1e-30).log()).sum(-1).exp()  # perplexity
    assert 2 < shared_by.median() < 50
    scaled = soft_codes(7 * latents, 7 * codebook, torch.eye(512, dtype=torch.float64))
    torch.testing.assert_close(weights, scaled)  # the choice does not depend on the unit


# ---- the backbone ------------------------------------------------------------------------------
def slopes(function: Callable[[Tensor], Tensor], at: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """By autograd and by central differences, along a random direction."""
    direction = torch.randn(at.shape, generator=torch.Generator().manual_seed(0)).to(at)
    point = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point), [point])
    with torch.no_grad():
        ahead, behind = (function(at + sign * step * direction) for sign in (1, -1))
    return (gradient * direction).sum(), (ahead - behind) / (2 * step)


def test_the_gradient_of_reading_is_that_of_finite_differences(precise: Emu3Backbone) -> None:
    images = random_images(1, SIDE).double()
    weight = torch.randn(GRID**2, 32, generator=torch.Generator().manual_seed(1)).double()

    def read(images: Tensor) -> Tensor:
        return (precise.read_images(images, hard=False)[1] * weight).sum()

    exact, difference = slopes(read, images, step=1e-6)
    assert difference.abs() > 1e-3
    torch.testing.assert_close(exact, difference, rtol=1e-5, atol=0.0)


def test_the_gradient_of_a_whole_challenge_is_that_of_finite_differences(
    precise: Emu3Backbone,
) -> None:
    visual = precise.visual_states(random_images(1, SIDE).double(), PROMPTS)

    def challenge(states_BNH: Tensor) -> Tensor:
        drawing = precise.draw(states_BNH, visual.codes, temperature=5.0, hard=False)
        embeds = precise.read_images(drawing.images, hard=False)[1]
        return precise.answer_loss(None, QUESTIONS, ANSWERS, embeds=embeds).sum()

    # The norms of transformers' language model are float32 in any model: larger steps, 1 %.
    exact, difference = slopes(challenge, visual.states_BNH.double(), step=1e-2)
    assert difference.abs() > 1e-4
    torch.testing.assert_close(exact, difference, rtol=1e-2, atol=0.0)


def test_checkpointed_convolutions_round_as_others_do() -> None:
    backbone = tiny_emu3()
    images = random_images(3, SIDE)
    codes = backbone.encode_images(images)
    latents, drawn = backbone.image_features(images), backbone.render(codes)
    frugal = copy.deepcopy(backbone)
    frugal.gradient_checkpointing_enable()
    assert torch.equal(frugal.image_features(images.clone().requires_grad_()), latents)
    vectors = frugal.codebook()[codes].requires_grad_()
    assert torch.equal(frugal.decode_vectors(vectors), drawn)


def test_checkpointing_recomputes_the_image_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_emu3()
    backbone.gradient_checkpointing_enable()
    calls = {"encoder": 0, "decoder": 0}
    vq = backbone.emu3.model.vqmodel
    for name in calls:
        conv = getattr(vq, name).conv_in

        def count(*_: object, name: str = name) -> None:
            calls[name] += 1

        conv.register_forward_hook(count)
    images = random_images(1, SIDE).requires_grad_()
    vectors = backbone.codebook()[backbone.encode_images(images)].detach().requires_grad_()
    calls.update(encoder=0, decoder=0)
    backbone.image_features(images).sum().backward()
    backbone.decode_vectors(vectors).sum().backward()
    assert calls == {"encoder": 2, "decoder": 2}
