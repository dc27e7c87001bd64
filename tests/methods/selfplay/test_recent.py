"""tau is a quantile over recent candidates, so .6 is .6 at any size of batch."""

from __future__ import annotations

import io
import math

import pytest
import torch

from tests.methods.selfplay.fake_backbone import WIDTH, FakeBackbone
from tests.methods.selfplay.helpers import make_batch
from unigame.errors import UserError
from unigame.methods.selfplay import (
    HardSampleBuffer,
    NoPerturber,
    Perturber,
    SelfPlaySettings,
    accept,
    challenge,
    mine,
)
from unigame.methods.selfplay.recent import RecentHardness


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 64])
def test_the_share_that_passes_is_the_one_asked_for_at_any_batch_size(size: int) -> None:
    recent = RecentHardness()
    drawn = torch.rand(1920, generator=torch.Generator().manual_seed(0))
    passed = []
    for mining in drawn.split(size):
        recent.add(mining)
        passed.append(accept(mining, torch.ones(size), 0.6, 0.0, recent.values))
    assert torch.cat(passed)[256:].float().mean().item() == pytest.approx(0.4, abs=0.035)


def test_a_single_easy_candidate_does_not_pass_by_being_alone() -> None:
    backbone, config, buffer = (
        FakeBackbone(),
        SelfPlaySettings(hard_quantile=0.6),
        HardSampleBuffer(),
    )
    accepted = []
    for seed in range(40):
        batch = make_batch(1, seed=seed)
        batch.questions = [f"question {seed}"]
        result = challenge(backbone, NoPerturber(), batch, config)
        accepted.append(mine(result, batch, buffer, config, seed).accepted)
    assert 8 <= sum(accepted) <= 24


def test_two_ranks_that_share_their_candidates_have_one_quantile() -> None:
    backbone, config = FakeBackbone(), SelfPlaySettings(hard_quantile=0.6)
    torch.manual_seed(0)
    perturber = Perturber(WIDTH, width=16, eps_max=4.0, eps_init=2.0)
    whole, alone = make_batch(8), HardSampleBuffer()
    result = challenge(backbone, perturber, whole, config)
    mine(result, whole, alone, config)
    halves = [slice(0, 4), slice(4, 8)]
    found = []
    for half in halves:
        part = make_batch(8).pick(range(8)[half])
        buffer = HardSampleBuffer()
        other = result.hardness_BK.flatten()[halves[1 - halves.index(half)]]
        mine(
            challenge(backbone, perturber, part, config),
            part,
            buffer,
            config,
            gather=lambda own, other=other: torch.cat([other, own, torch.tensor([math.nan])]),
        )
        found += buffer.samples
        assert torch.allclose(buffer.recent.values, alone.recent.values, atol=1e-6)
    assert {s.source for s in found} == {s.source for s in alone.samples}
    assert 0 < len(found) < 8


def test_whole_minings_are_dropped_and_enough_remain() -> None:
    recent = RecentHardness(size=4)
    for start in (0.0, 10.0, 20.0):
        recent.add(torch.tensor([start, start + 1, start + 2]))
    assert sorted(recent.values.tolist()) == [10, 11, 12, 20, 21, 22]
    recent.add(torch.arange(9.0))  # more than the window at once: all of it is looked at
    assert sorted(recent.values.tolist()) == list(range(9))


def test_what_is_not_finite_moves_nothing() -> None:
    recent = RecentHardness()
    recent.add(torch.tensor([math.nan, math.inf]))
    assert len(recent) == 0 and len(recent.values) == 0
    recent.add(torch.tensor([1.0, math.nan]))
    assert recent.values.tolist() == [1.0]


def test_the_window_is_saved_with_the_buffer() -> None:
    buffer, other = HardSampleBuffer(window=5), HardSampleBuffer(window=5)
    for value in range(7):
        buffer.recent.add(torch.tensor([float(value), value / 3]))
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for one in (buffer, other):
        one.recent.add(torch.tensor([9.0]))
    assert torch.equal(other.recent.values, buffer.recent.values)


def test_an_impossible_window_is_refused() -> None:
    with pytest.raises(UserError, match="window=0"):
        HardSampleBuffer(window=0)
