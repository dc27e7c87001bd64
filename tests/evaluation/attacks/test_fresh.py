from __future__ import annotations

import pytest
import torch

from tests.methods.selfplay.fake_backbone import FakeBackbone
from tests.methods.selfplay.helpers import make_batch
from unigame.errors import UserError
from unigame.evaluation.attacks.fresh import attacked_images, frozen_attack
from unigame.methods.selfplay import NoPerturber, SelfPlaySettings

SETTINGS = {"lr": 1e-2, "width": 16, "eps_max": 4.0, "eps_init": 2.0}


def mean_loss(backbone, images, batch) -> float:
    return backbone.answer_loss(images, batch.questions, batch.answers).mean().item()


def test_fresh_attack_beats_the_plain_redrawing_and_leaves_u_alone():
    backbone = FakeBackbone(hard=False)
    batch, config = make_batch(), SelfPlaySettings()
    weights = {k: v.clone() for k, v in backbone.state_dict().items()}
    state = torch.get_rng_state()
    perturber = frozen_attack(backbone, batch, steps=40, config=config, seed=3, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, weights[k]) for k, v in backbone.state_dict().items())
    assert all(p.grad is None for p in backbone.parameters())
    assert backbone.calls["visual_states"] == 1  # U does not move: its states are reused
    attacked = attacked_images(backbone, perturber, batch, config)
    plain = attacked_images(backbone, NoPerturber(), batch, config)
    assert attacked.shape == batch.images.shape
    assert mean_loss(backbone, attacked, batch) > mean_loss(backbone, plain, batch)


def test_attack_is_reproducible_and_takes_several_batches():
    batches = [make_batch(seed=0), make_batch(seed=1)]
    config = SelfPlaySettings(num_candidates=2)
    run = [
        frozen_attack(FakeBackbone(), batches, steps=4, config=config, seed=seed, **SETTINGS)
        for seed in (3, 3, 4)
    ]
    flat = [torch.cat([p.detach().flatten() for p in c.parameters()]) for c in run]
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])


def test_one_picture_per_sample_whatever_k():
    backbone, batch = FakeBackbone(), make_batch()
    config = SelfPlaySettings(num_candidates=3)
    generator = torch.Generator().manual_seed(0)
    images = attacked_images(backbone, NoPerturber(), batch, config, generator)
    assert images.shape == batch.images.shape and not images.requires_grad


def test_token_space_attack_trains_but_has_no_pictures():
    backbone, batch, config = FakeBackbone(), make_batch(), SelfPlaySettings(perturb_space="tokens")
    perturber = frozen_attack(backbone, batch, steps=2, config=config, **SETTINGS)
    with pytest.raises(UserError, match="token space"):
        attacked_images(backbone, perturber, batch, config)


@pytest.mark.parametrize(("steps", "batches"), [(0, [make_batch()]), (3, [])])
def test_empty_attacks_are_refused(steps, batches):
    with pytest.raises(UserError, match="at least 1"):
        frozen_attack(FakeBackbone(), batches, steps=steps, config=SelfPlaySettings(), **SETTINGS)
