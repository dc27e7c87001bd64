"""The discrete step: what is drawn, and what gradient passes."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import random_images, tiny_backbone
from unigame.backbones.common.codes import draw_codes, gumbel_noise, near_bias

BOOK = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))


def logits(batch: int = 2, tokens: int = 5) -> torch.Tensor:
    return torch.randn(batch, tokens, 6, generator=torch.Generator().manual_seed(1))


def test_argmax_draws_the_codebook_vectors_bit_for_bit() -> None:
    scores = logits()
    drawn = draw_codes(scores, torch.zeros(2, 5), BOOK)
    assert torch.equal(drawn.codes_MN, scores.argmax(-1))
    assert torch.equal(drawn.vectors_MNE, BOOK[scores.argmax(-1)])


def test_the_gradient_is_that_of_the_softmax_mixture() -> None:
    gradients = []
    for hard in (True, False):
        scores = logits().requires_grad_()
        drawn = draw_codes(scores, torch.zeros(2, 5), BOOK, temperature=0.7, hard=hard)
        weight = torch.linspace(-1, 1, drawn.vectors_MNE.numel()).view_as(drawn.vectors_MNE)
        (drawn.vectors_MNE * weight).sum().backward()
        gradients.append(scores.grad)
    assert torch.equal(*gradients)
    expected = torch.autograd.functional.jacobian(
        lambda s: ((s / 0.7).softmax(-1) @ BOOK * weight).sum(), logits()
    )
    torch.testing.assert_close(gradients[0], expected)


@pytest.mark.parametrize("settings", [{}, {"num_candidates": 3}, {"temperature": 0.7}])
def test_without_a_gradient_the_same_is_drawn_and_no_score_touched(settings: dict) -> None:
    scores, own = logits(), torch.zeros(2, 5)
    learned = draw_codes(
        scores.clone().requires_grad_(),
        own,
        BOOK,
        sample=True,
        generator=torch.Generator().manual_seed(2),
        **settings,
    )
    before = scores.clone()
    drawn = draw_codes(
        scores, own, BOOK, sample=True, generator=torch.Generator().manual_seed(2), **settings
    )
    assert torch.equal(scores, before)
    assert torch.equal(drawn.codes_MN, learned.codes_MN)
    assert torch.equal(drawn.vectors_MNE, learned.vectors_MNE)
    assert learned.vectors_MNE.requires_grad and not drawn.vectors_MNE.requires_grad


def test_anchor_adds_to_the_logit_of_the_own_code() -> None:
    scores, own = logits(), torch.arange(10).view(2, 5) % 6
    drawn = draw_codes(scores, own, BOOK, anchor=1.5)
    biased = scores + 1.5 * torch.nn.functional.one_hot(own, 6)
    assert torch.equal(drawn.codes_MN, biased.argmax(-1))


def test_candidates_are_independent_draws_of_the_softmax() -> None:
    scores = logits(1, 2)
    generator = torch.Generator().manual_seed(0)
    drawn = draw_codes(
        scores, torch.zeros(1, 2), BOOK, num_candidates=20000, temperature=2.0, generator=generator
    )
    share = torch.nn.functional.one_hot(drawn.codes_MN, 6).float().mean(0)
    assert (share - (scores[0] / 2.0).softmax(-1)).abs().max() < 0.02


def test_rows_of_one_sample_lie_together() -> None:
    scores = 1e4 * logits()  # no Gumbel draw outweighs these differences
    generator = torch.Generator().manual_seed(0)
    drawn = draw_codes(scores, torch.zeros(2, 5), BOOK, num_candidates=3, generator=generator)
    assert torch.equal(drawn.codes_MN, scores.argmax(-1).repeat_interleave(3, dim=0))


def test_gumbel_noise_has_the_right_mean_and_spread() -> None:
    noise = gumbel_noise(torch.empty(1, 200, 1000), 1, torch.Generator().manual_seed(0))
    assert noise.isfinite().all()
    assert abs(noise.mean().item() - 0.5772) < 0.01
    assert abs(noise.var().item() - 1.6449) < 0.03


@pytest.mark.parametrize("wrong", [{"num_candidates": 0}, {"temperature": 0.0}])
def test_impossible_settings_are_named(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        draw_codes(logits(), torch.zeros(2, 5), BOOK, **wrong)


def test_smooth_drawing_matches_finite_differences() -> None:
    backbone = tiny_backbone().double()
    states = backbone.visual_states(random_images(2).double(), ["a red circle", "yellow"])
    z_BNH = states.states_BNH.double().requires_grad_()
    weight = random_images(2, seed=5).double()

    def value(z: torch.Tensor) -> torch.Tensor:
        drawing = backbone.draw(z, states.codes, anchor=0.5, temperature=2.0, hard=False)
        assert drawing.images.dtype == torch.float64
        return (drawing.images * weight).sum()

    (gradient,) = torch.autograd.grad(value(z_BNH), [z_BNH])
    direction = torch.randn(z_BNH.shape, generator=torch.Generator().manual_seed(2)).double()
    step = 1e-6
    with torch.no_grad():
        slope = (value(z_BNH + step * direction) - value(z_BNH - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-8)


def test_a_soft_anchor_also_holds_codes_near_the_own_one() -> None:
    kinship = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [-0.9, -0.1]])
    bias = near_bias(torch.tensor([[0]]), kinship, width=0.5)[0, 0]
    assert bias[0] == pytest.approx(1.0) and bias[1] > 0.9 and bias[2:].max() < 0.1
    logits = torch.tensor([[[0.0, 1.0, 3.0, 0.0]]])
    book, own = torch.eye(4), torch.tensor([[0]])

    def drawn(**more: float) -> int:
        return int(draw_codes(logits, own, book, anchor=4.0, kinship_VD=kinship, **more).codes_MN)

    # The own code by the hard anchor; its neighbour, which scores higher, by the soft one.
    assert (drawn(), drawn(anchor_width=0.5), drawn(anchor_width=1e-3)) == (0, 1, 0)
