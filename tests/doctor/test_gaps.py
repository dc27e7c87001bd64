"""Gaps of accuracy: their errors over pictures, and what may be said of them."""

from __future__ import annotations

import math

import pytest
import torch

from unigame.doctor import gaps

NAN = math.nan


def bits(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_the_error_is_that_of_the_paired_difference() -> None:
    """The same pictures are hard for both, so that their gap is surer than either accuracy."""
    before_P = torch.arange(100) % 2 == 0
    after_P = before_P.clone()
    after_P[:10] = False  # five that were right
    found = gaps.compared(before_P, after_P)
    assert found["gap"] == pytest.approx(0.05)
    assert found["error"] == pytest.approx((before_P.double() - after_P.double()).std() / 10)
    assert found["error"] < 0.6 * gaps.error_of_mean(before_P)


def test_agreement_of_few_pictures_is_no_certainty() -> None:
    assert gaps.error_of_mean(torch.zeros(8)) == 1 / 8
    assert gaps.error_of_mean(torch.zeros(8), pictures=2) == 1 / 2
    assert math.isnan(gaps.error_of_mean(torch.zeros(1)))
    assert math.isnan(gaps.compared(bits(), bits())["gap"])


def test_candidates_of_a_picture_count_as_one() -> None:
    """Sixty candidates that agree by picture say as much as their pictures, not four times it."""
    right_P = torch.arange(60) % 3 > 0
    one = gaps.share_of(right_P[:, None], torch.ones(60, 1, dtype=torch.bool))
    four = gaps.share_of(right_P[:, None].expand(60, 4), torch.ones(60, 4, dtype=torch.bool))
    assert one.value == four.value == pytest.approx(2 / 3)
    assert one.error == pytest.approx(four.error)
    assert one.error == pytest.approx(gaps.error_of_mean(right_P))


def test_a_share_is_of_what_is_kept_and_its_error_of_where_something_is() -> None:
    right = torch.tensor([[1, 0], [1, 1], [0, 0]], dtype=torch.bool)
    kept = torch.tensor([[1, 0], [1, 0], [0, 0]], dtype=torch.bool)
    share = gaps.share_of(right, kept)
    assert share.value == 1.0 and share.pictures == 2 and share.error == 0.5
    none = gaps.share_of(right, torch.zeros_like(kept))
    assert none.value is None and math.isnan(none.error)
    assert math.isnan(none.gap_to(share)["gap"])
    mixed = gaps.share_of(right, torch.ones_like(kept))
    assert mixed.gap_to(share)["gap"] == pytest.approx(1 - 3 / 6)


def test_an_auc_has_an_error_over_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(200):
        hard_P = torch.randn(30, generator=generator)  # all values of a picture move together
        same_P = hard_P + torch.randn(30, generator=generator) + 1
        other_P2 = hard_P[:, None] + torch.randn(30, 2, generator=generator)
        made_of_E = torch.arange(30).repeat_interleave(2)
        drawn.append(gaps.auc_and_error(same_P, other_P2.flatten(), made_of_E))
    found = torch.tensor([one["auc"] for one in drawn])
    error = sum(one["error"] for one in drawn) / len(drawn)
    assert error == pytest.approx(found.std().item(), rel=0.15)
    assert gaps.auc_and_error(same_P, torch.zeros(0), torch.zeros(0, dtype=torch.long)) is None


@pytest.mark.parametrize(
    ("gap", "error", "said"),
    [
        (0.05, 0.02, "yes"),
        (0.05, 0.03, "unknown"),  # within noise
        (0.0, 0.005, "no"),
        (0.0, 0.03, "unknown"),  # a gap that is worth a run would not show
        (-0.1, 0.03, "no"),
        (0.015, 0.005, "no"),  # surely there, and too small
        (0.05, NAN, "unknown"),
        (NAN, 0.01, "unknown"),
    ],
)
def test_a_verdict_knows_its_error(gap: float, error: float, said: str) -> None:
    assert gaps.judged(gap, error) == said


@pytest.mark.parametrize(("gap", "error"), [(0.05, 0.03), (0.0, 0.03), (0.01, 0.02)])
def test_as_many_pictures_as_are_advised_would_tell(gap: float, error: float) -> None:
    many = gaps.needed(96, gap, error)
    assert many > 96 and gaps.judged(gap, error) == "unknown"
    assert gaps.judged(gap, error * math.sqrt(96 / many)) != "unknown"
    assert gaps.needed(200, 0.05, NAN) == 400
