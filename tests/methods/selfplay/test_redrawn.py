"""The redrawn baseline in a plain loop."""

from __future__ import annotations

import pytest
import torch

from tests.methods.selfplay.fake_backbone import WIDTH, FakeBackbone
from tests.methods.selfplay.helpers import make_batch
from unigame.methods.selfplay import NoPerturber, Perturber, SelfPlaySettings, challenge
from unigame.methods.selfplay.redrawn import redrawn, redrawn_figures


def test_it_moves_no_generator_and_meets_the_same_noise() -> None:
    backbone, batch, config = FakeBackbone(), make_batch(4), SelfPlaySettings(num_candidates=3)
    generator = torch.Generator().manual_seed(5)
    noise = generator.get_state()
    nobody = challenge(backbone, NoPerturber(), batch, config, generator=generator)
    after, everywhere = generator.get_state(), torch.get_rng_state()
    found = redrawn(backbone, batch, config, noise=noise)
    assert torch.equal(generator.get_state(), after)
    assert torch.equal(torch.get_rng_state(), everywhere)
    assert torch.equal(found.drawing.compact, nobody.drawing.compact)
    assert torch.equal(found.ce_BK, nobody.ce_BK)


def test_codes_of_attack_and_redrawing_are_compared_with_each_other() -> None:
    backbone, batch, config = FakeBackbone(), make_batch(4), SelfPlaySettings()
    torch.manual_seed(0)
    perturber = Perturber(WIDTH, width=16, eps_max=4.0, eps_init=2.0)
    attacked = challenge(backbone, perturber, batch, config)
    baseline = redrawn(backbone, batch, config)
    figures = redrawn_figures(attacked, baseline)
    changed = (attacked.drawing.compact != baseline.drawing.compact).float().mean().item()
    assert figures["attack_codes_changed"] == pytest.approx(changed) and changed > 0
    assert figures["redrawn_codes_changed"] == baseline.metrics["codes_changed"]
    assert figures["redrawn_ce"] == pytest.approx(baseline.ce_BK.mean().item())


def test_sampled_candidates_need_their_noise() -> None:
    with pytest.raises(ValueError, match="noise"):
        redrawn(FakeBackbone(), make_batch(2), SelfPlaySettings(sample_candidates=True))
    with pytest.raises(ValueError, match="token space"):
        redrawn(FakeBackbone(), make_batch(2), SelfPlaySettings(perturb_space="tokens"))
