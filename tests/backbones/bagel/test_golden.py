"""Numbers against a forward pass in plain torch that knows the files and the facts alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.backbones.bagel.oracle import Oracle, seen_by_splits
from tests.backbones.conftest import loaded
from tests.tiny import random_images
from tests.tiny_bagel import shared_tiny_bagel, shared_wide_bagel
from unigame.backbones.bagel import flow
from unigame.backbones.bagel.model import BagelBackbone

CAPTION, QUESTION, ANSWER = "a red circle left of a cross", "what colour is the circle", "red"
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
LEVEL = 0.5


@pytest.fixture(scope="module", params=[shared_tiny_bagel, shared_wide_bagel])
def folder(request: pytest.FixtureRequest) -> Path:
    """Pictures are squares, or twice as wide as high."""
    return request.param()


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> BagelBackbone:
    """Shared: no test here changes it."""
    return cast(BagelBackbone, copy.deepcopy(loaded(folder)))


@pytest.fixture(scope="module")
def image(backbone: BagelBackbone) -> Tensor:
    height, width = backbone.bagel.config.image_shape
    return random_images(1, 16)[..., :height, :width]


def ids(backbone: BagelBackbone, text: str) -> list[int]:
    tokenizer = backbone.layout.tokenizer
    return [tokenizer.convert_tokens_to_ids(word) for word in text.split()]


def marks(backbone: BagelBackbone) -> list[int]:
    return ids(backbone, "<|vision_start|> <|vision_end|>")


def pixels(image: Tensor) -> Tensor:
    return 2 * image.double() - 1


def noise(backbone: BagelBackbone) -> Tensor:
    return flow.fixed_noise(backbone.bagel.config.latent_shape, torch.zeros(1).double())


def caption(backbone: BagelBackbone) -> list[int]:
    return ids(backbone, f"<|im_start|> {CAPTION} <|im_end|>")


def assert_near(found: Tensor, expected: Tensor, **tolerance: float) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, **{**TOLERANCE, **tolerance})


def test_tokens_that_are_read(backbone: BagelBackbone, oracle: Oracle, image: Tensor) -> None:
    assert_near(backbone.embed_images(image)[0], oracle.read(pixels(image)[0]))


def test_a_long_picture_is_read_on_the_same_grid(backbone: BagelBackbone, oracle: Oracle) -> None:
    long = 2 * torch.rand(1, 3, 8, 20, generator=torch.Generator().manual_seed(1)) - 1
    _, tokens = backbone.bagel.read(long)
    assert_near(tokens[0], oracle.read(long[0].double()))


def test_logits_of_an_answer(backbone: BagelBackbone, oracle: Oracle, image: Tensor) -> None:
    first, last = marks(backbone)
    asked = ids(backbone, f"<|im_start|> {QUESTION} <|im_end|>")
    said = ids(backbone, f"<|im_start|> {ANSWER}")
    seen = oracle.read(pixels(image)[0])
    row = torch.cat([oracle.words([first]), seen, oracle.words([last]), oracle.words(asked + said)])
    count = len(seen) + 2
    words = len(asked) + len(said)
    positions = [*[0] * count, *range(1, words + 1)]
    mask = seen_by_splits([("full", count), ("causal", words)])
    states = oracle.states(row, positions, [""] * len(row), mask)
    logits = oracle.logits(states[-2:])
    target = torch.tensor([said[1], *ids(backbone, "<|im_end|>")])
    losses = backbone.answer_token_losses(image, [QUESTION], [ANSWER])
    assert_near(losses.loss_MA[0], F.cross_entropy(logits, target, reduction="none"))
    asked_rows = backbone.answer_tokens([QUESTION], [ANSWER])
    tokens = backbone.layout.pad(
        [asked_rows[0].prompt + asked_rows[0].answer[:-1]], "right", backbone.device
    )
    embeds = backbone.embed_rows(tokens, backbone.embed_images(image))
    found = backbone.text_logits(backbone.language_states(embeds, tokens)[0, -2:])
    assert_near(found, logits)
    # The first free word is the one that the row of training scores highest.
    word = backbone.layout.tokenizer.decode([int(logits[0].argmax())])
    assert backbone.answer(image, [QUESTION], max_new_tokens=1) == [word]


def test_latents_and_pictures_of_the_autoencoder(
    backbone: BagelBackbone, oracle: Oracle, image: Tensor
) -> None:
    latents = oracle.encode(pixels(image))
    assert_near(backbone.encode_images(image), latents)
    picture = (oracle.decode(latents) + 1) / 2
    assert_near(backbone.render(latents.float()), picture.clamp(0, 1))


def test_states_the_drawn_latent_and_its_picture(
    backbone: BagelBackbone, oracle: Oracle, image: Tensor
) -> None:
    clean = oracle.encode(pixels(image))[0]
    noisy = (1 - LEVEL) * clean + LEVEL * noise(backbone)
    states = oracle.drawn_states(caption(backbone), marks(backbone), noisy, LEVEL)
    visual = backbone.visual_states(image, [CAPTION])
    assert_near(visual.states_BNH[0], states)
    shift = 0.1 * torch.randn(states.shape, generator=torch.Generator().manual_seed(2)).double()
    drawn = noisy - LEVEL * oracle.velocity(states + shift, *clean.shape[1:])
    drawing = backbone.draw(visual.states_BNH + shift.float(), visual.codes)
    assert_near(drawing.compact[0], drawn)
    assert_near(drawing.images[0], ((oracle.decode(drawn[None])[0] + 1) / 2).clamp(0, 1))


def test_the_flow_target(backbone: BagelBackbone, oracle: Oracle, image: Tensor) -> None:
    clean, eps = oracle.encode(pixels(image))[0], noise(backbone)
    losses = []
    for level in (0.125, 0.375, 0.625, 0.875):
        noisy = (1 - level) * clean + level * eps
        states = oracle.drawn_states(caption(backbone), marks(backbone), noisy, level)
        velocity = oracle.velocity(states, *clean.shape[1:])
        losses.append((velocity - (eps - clean)).square().mean())
    assert_near(backbone.generation_loss(image, [CAPTION])[0], torch.stack(losses).mean())


def test_the_flow_target_behind_a_picture_that_is_read(
    backbone: BagelBackbone, oracle: Oracle, image: Tensor
) -> None:
    clean, eps = oracle.encode(pixels(image))[0], noise(backbone)
    read, (first, last) = oracle.read(pixels(image)[0]), marks(backbone)
    said, count = ids(backbone, "<|im_start|> describe the picture <|im_end|>"), len(read)
    losses = []
    for level in (0.125, 0.375, 0.625, 0.875):
        latents = oracle.latent_tokens((1 - level) * clean + level * eps, level)
        texts = [oracle.words(part) for part in ([first], [last, *said, first], [last])]
        row = torch.cat([texts[0], read, texts[1], latents, texts[2]])
        behind = 1 + len(said)
        positions = [*[0] * (count + 2), *range(1, behind), *[behind] * (count + 2)]
        experts = [*[""] * (count + 3 + len(said)), *["_moe_gen"] * count, ""]
        splits = [("full", count + 2), ("causal", len(said)), ("noise", count + 2)]
        states = oracle.states(row, positions, experts, seen_by_splits(splits))[-count - 1 : -1]
        velocity = oracle.velocity(states, *clean.shape[1:])
        losses.append((velocity - (eps - clean)).square().mean())
    found = backbone.reconstruction_loss(image, ["describe the picture"])
    assert_near(found[0], torch.stack(losses).mean())


def test_free_drawing(backbone: BagelBackbone, oracle: Oracle) -> None:
    """Euler steps on shifted points in time, guided above 0.4, renormalised, against no caption."""
    shape, scale = backbone.bagel.config.latent_shape, 4.0
    now = torch.randn(shape, generator=torch.Generator().manual_seed(3)).double()
    times = [3 * t / (1 + 2 * t) for t in (1.0, 2 / 3, 1 / 3, 0.0)]
    assert times[1] > 0.4 and times[2] > 0.4
    for t, then in zip(times, times[1:], strict=False):
        wanted, plain = (
            oracle.velocity(oracle.drawn_states(prompt, marks(backbone), now, t), *shape[1:])
            for prompt in (caption(backbone), [])
        )
        pushed = plain + scale * (wanted - plain)
        pushed = pushed * min(1.0, float(wanted.norm() / pushed.norm()))
        now = now - (t - then) * pushed
    expected = ((oracle.decode(now[None]) + 1) / 2).clamp(0, 1)
    found = backbone.generate([CAPTION], seed=3, guidance_scale=scale)
    assert_near(found, expected, atol=1e-4)
