"""Fault 6, first half: in bfloat16 a perturbation of norm 0.01 at H = 4096 is lost to rounding."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from unigame.backbones.base import Backbone, Drawing, VisualStates
from unigame.methods.selfplay import Perturber, Rows, SelfPlaySettings, challenge

WIDTH = 4096


class OnlyDrawing:
    """The verbs a challenge uses, with bfloat16 states; remembers what it was asked to draw."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.states = torch.randn(2, 3, WIDTH, generator=generator).bfloat16()
        self.drawn: torch.Tensor | None = None

    def without_dropout(self):
        return torch.enable_grad()

    def visual_states(self, images, prompts, *, codes=None):
        return VisualStates(self.states, torch.zeros(2, 3, dtype=torch.long))

    def draw(self, states_BNH, codes, **settings):
        self.drawn = states_BNH
        return Drawing(torch.sigmoid(states_BNH.mean()) * torch.ones(2, 3, 4, 4), codes)

    def read_images(self, images):
        return images.flatten(2), images.flatten(2)

    def answer_loss(self, images, questions, answers, *, embeds=None):
        return embeds.mean(dim=(1, 2))

    answer_token_losses = Backbone.answer_token_losses  # the contract's own: each answer one token


@pytest.mark.parametrize("autocast", [False, True])
def test_direction_and_length_survive_at_the_papers_scale(autocast):
    backbone = OnlyDrawing()
    torch.manual_seed(0)
    perturber = Perturber(WIDTH, width=32, eps_max=0.02, eps_init=0.01)
    batch = Rows(torch.zeros(2, 3, 4, 4), ["q", "q"], ["a", "a"])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        result = challenge(backbone, perturber, batch, SelfPlaySettings())
    assert result.delta_BNH.dtype == backbone.drawn.dtype == torch.float32
    effective = backbone.drawn.detach().double() - backbone.states.double()
    assert cosine_similarity(effective, result.delta_BNH.double(), dim=-1).min() > 0.999
    assert torch.allclose(effective.norm(dim=-1), torch.full((2, 3), 0.01).double(), rtol=1e-2)
    # The same sum in bfloat16 is what the fault did: its direction is mostly rounding.
    rounded = (backbone.states + result.delta_BNH.bfloat16()).double() - backbone.states.double()
    assert cosine_similarity(rounded, result.delta_BNH.double(), dim=-1).max() < 0.5


def test_everything_that_supervises_c_is_float32():
    backbone = OnlyDrawing()
    perturber = Perturber(WIDTH, width=8)
    batch = Rows(torch.zeros(2, 3, 4, 4), ["q", "q"], ["a", "a"])
    backbone.answer_loss = lambda *_, embeds: embeds.mean(dim=(1, 2)).bfloat16()
    result = challenge(backbone, perturber, batch, SelfPlaySettings(lambda_norm=1.0))
    gradients = torch.autograd.grad(result.objective, list(perturber.parameters()))
    assert result.objective.dtype == result.hardness_BK.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
