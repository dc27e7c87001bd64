"""Fault 9, first half: the buffer was drained at every step; mining reset the global generator."""

from __future__ import annotations

import torch

from tests.faults.play import batch_of, strong_perturber, tiny_janus
from unigame.methods.selfplay import HardSampleBuffer, SelfPlaySettings, challenge, mine

HARD_BATCH = 2


def test_replay_over_many_steps_takes_nothing_out_and_fills_the_hard_batch():
    backbone, batch = tiny_janus(), batch_of()
    buffer, config = HardSampleBuffer(capacity=8, seed=1), SelfPlaySettings(hard_quantile=0.0)
    mine(challenge(backbone, strong_perturber(), batch, config), batch, buffer, config)
    held = buffer.samples
    assert len(held) == 3
    for _ in range(10):
        hard = buffer.sample(HARD_BATCH)
        assert len(hard) == len({s.source for s in hard}) == HARD_BATCH
    assert buffer.samples == held


def test_challenge_mining_and_replay_leave_the_global_generator_alone():
    backbone, batch = tiny_janus(), batch_of()
    buffer, config = HardSampleBuffer(seed=1), SelfPlaySettings(num_candidates=2, hard_quantile=0.0)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    perturber = strong_perturber()
    for step in range(2):
        result = challenge(backbone, perturber, batch, config, generator=generator)
        mine(result, batch, buffer, config, step)
        buffer.sample(HARD_BATCH)
    assert torch.equal(torch.get_rng_state(), before)
    # And the other way round: whatever happens to the global generator, replay goes on unmoved.
    state = buffer.state_dict()
    drawn = [s.source for _ in range(5) for s in buffer.sample(HARD_BATCH)]
    buffer.load_state_dict(state)
    torch.manual_seed(999)
    assert [s.source for _ in range(5) for s in buffer.sample(HARD_BATCH)] == drawn
