from __future__ import annotations

import pytest
import torch

from unigame.methods.selfplay import (
    accept,
    hardness,
    label_penalty,
    perturber_objective,
    understanding_loss,
)


def test_understanding_loss_is_equation_6():
    loss = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0])
    is_hard = torch.tensor([False, False, False, True, True])
    assert understanding_loss(loss, is_hard, 0.5).item() == pytest.approx(3.0 + 0.5 * 15.0)


def test_without_hard_samples_it_is_the_plain_mean():
    loss = torch.tensor([1.0, 2.0, 6.0])
    assert understanding_loss(loss, torch.zeros(3), 0.5).item() == pytest.approx(3.0)
    assert understanding_loss(loss, torch.ones(3), 0.5).item() == pytest.approx(1.5)


def test_micro_batches_with_the_steps_counts_add_up_to_the_whole():
    loss = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0])
    is_hard = torch.tensor([False, True, False, False, True])
    whole = understanding_loss(loss, is_hard, 0.5)
    parts = [
        understanding_loss(loss[s], is_hard[s], 0.5, num_clean=3, num_hard=2)
        for s in (slice(0, 2), slice(2, 5))
    ]
    assert sum(parts).item() == pytest.approx(whole.item())


def test_perturber_objective_term_by_term():
    ce = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    delta = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    plain = perturber_objective(ce, delta)
    assert plain.tolist() == [2.0, 6.0]
    with_norm = perturber_objective(ce, delta, lambda_norm=2.0)
    assert with_norm.tolist() == [2.0 - 2 * 12.5, 6.0 - 2 * 1.0]  # mean over tokens of the square
    with_l2 = perturber_objective(ce, delta, l2=1.0)
    assert with_l2.tolist() == [2.0 - 25 / 4, 6.0 - 2 / 4]
    with_tv = perturber_objective(ce, delta, tv=1.0)
    assert with_tv.tolist() == [2.0 - 3.5, 6.0 - 1.0]
    similarity = torch.tensor([[0.5, 1.0], [0.9, 0.7]])
    labelled = perturber_objective(
        ce, delta, similarity_BK=similarity, label_weight=10.0, label_floor=0.8
    )
    assert torch.allclose(labelled, torch.tensor([2.0 - 1.5, 6.0 - 0.5]))


def test_label_weight_without_similarity_is_an_error():
    with pytest.raises(ValueError, match="similarity_BK"):
        perturber_objective(torch.ones(1, 1), torch.ones(1, 2, 3), label_weight=1.0)


def test_single_token_has_no_total_variation():
    objective = perturber_objective(torch.ones(2, 1), torch.ones(2, 1, 3), tv=1.0)
    assert objective.tolist() == [1.0, 1.0]


def test_label_penalty_is_free_above_the_floor():
    assert label_penalty(torch.tensor([0.5, 0.8, 0.95]), 0.8).tolist() == pytest.approx([0.3, 0, 0])


def test_hardness_is_equation_4():
    ce = torch.tensor([1.0, 1.0, 1.0])
    similarity = torch.tensor([0.9, 0.3, 0.1])
    assert hardness(ce, similarity, 0.2, 0.3).tolist() == pytest.approx([1.0, 1.0, 1.04])


def test_accept_needs_both_conditions():
    h = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    similarity = torch.tensor([[0.9, 0.9], [0.1, 0.3]])
    assert accept(h, similarity, 0.5, 0.3).tolist() == [[False, False], [False, True]]
    assert accept(h, similarity, 0.0, 0.3).tolist() == [[True, True], [False, True]]


def test_accept_survives_ties_and_single_candidates():
    assert accept(torch.ones(5), torch.ones(5), 0.6, 0.3).all()
    assert accept(torch.ones(1), torch.ones(1), 1.0, 0.3).all()


def test_accept_refuses_what_is_not_finite_and_is_not_moved_by_it():
    h = torch.tensor([float("inf"), 1.0, 2.0, float("nan")])
    assert accept(h, torch.ones(4), 1.0, 0.3).tolist() == [False, False, True, False]
    assert not accept(torch.tensor([float("nan")]), torch.ones(1), 0.6, 0.3).any()
