"""An answer is judged by its own tokens: how hard it was, and whether it was read right."""

from __future__ import annotations

import math

import pytest
import torch

from tests.methods.selfplay.fake_backbone import FakeBackbone
from tests.methods.selfplay.helpers import make_batch
from unigame.backbones.base import AnswerLosses
from unigame.methods.answers import ReadAnswers, own_loss, reads_right


def losses(*answers: list[float]) -> AnswerLosses:
    """From the probability of each token of each answer, its end mark last."""
    length = max(len(answer) for answer in answers)
    rows = [[-math.log(p) for p in answer] + [0.0] * (length - len(answer)) for answer in answers]
    return AnswerLosses(torch.tensor(rows), torch.tensor([len(answer) for answer in answers]))


@pytest.mark.parametrize(("p", "right"), [(0.26, False), (0.45, False), (0.55, True), (0.9, True)])
def test_a_one_word_answer_is_right_above_one_half(p: float, right: bool) -> None:
    assert reads_right(losses([p, 1.0])).item() is right


def test_the_end_mark_neither_makes_nor_spoils_an_answer() -> None:
    assert reads_right(losses([0.4, 1.0], [0.6, 0.001])).tolist() == [False, True]
    assert own_loss(losses([0.4, 1.0], [0.4, 0.001])).tolist() == pytest.approx(
        [-math.log(0.4)] * 2
    )


def test_one_wrong_token_is_not_outvoted() -> None:
    assert reads_right(losses([0.99, 0.3, 0.99, 1.0])).item() is False
    assert reads_right(losses([0.8] * 9 + [1.0])).item() is True  # not by its length either


def test_the_hardness_of_a_longer_answer_is_the_mean_of_its_tokens() -> None:
    found = own_loss(losses([0.5, 1.0], [0.5, 0.25, 1.0]))
    assert found.tolist() == pytest.approx([math.log(2), 1.5 * math.log(2)])


def test_an_empty_answer_is_nothing_but_its_end_mark() -> None:
    found = losses([0.3], [0.9, 1.0])
    assert own_loss(found).tolist() == pytest.approx([-math.log(0.3), -math.log(0.9)])
    assert reads_right(found).tolist() == [False, True]


def test_a_loss_that_is_not_finite_is_not_right() -> None:
    found = AnswerLosses(torch.tensor([[math.nan, 0.1], [math.inf, 0.1]]), torch.tensor([2, 2]))
    assert not reads_right(found).any()


def test_no_gradient_reaches_the_end_mark() -> None:
    loss_MA = losses([0.4, 0.5, 0.9], [0.4, 0.9]).loss_MA.requires_grad_()
    own_loss(AnswerLosses(loss_MA, torch.tensor([3, 2]))).sum().backward()
    assert loss_MA.grad is not None
    assert loss_MA.grad.tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]


def test_readings_of_passes_are_joined_in_order() -> None:
    one, other = ReadAnswers.of(losses([0.9, 1.0], [0.2, 1.0])), ReadAnswers.of(losses([0.6, 0.5]))
    joined = ReadAnswers.joined([one[:1], other])
    assert len(joined) == 2 and joined.right_B.tolist() == [True, True]
    assert joined.own_B.tolist() == pytest.approx([-math.log(0.9), -math.log(0.6)])


def test_a_backbone_that_tells_no_tokens_apart_is_judged_by_the_mean() -> None:
    backbone, batch = FakeBackbone(), make_batch(3)
    asked = batch.images, batch.questions, batch.answers
    found = backbone.answer_token_losses(*asked)
    assert torch.equal(own_loss(found), backbone.answer_loss(*asked))
    assert torch.equal(found.mean(), backbone.answer_loss(*asked))
