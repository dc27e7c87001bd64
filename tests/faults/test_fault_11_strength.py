"""Fault 11: the strength was a scalar in front of the loss, which AdamW divides out again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.faults.play import batch_of, tiny_janus
from unigame.methods.selfplay import (
    FeatureSimilarity,
    NoPerturber,
    Perturber,
    SelfPlaySettings,
    challenge,
    perturber_step,
)

BASE = SelfPlaySettings(anchor=1.0, lambda_norm=1.0, l2=1.0, tv=1.0, label_weight=1.0)


def play(config: SelfPlaySettings, **perturber_settings: float):
    """One challenge with a freshly built C; equal settings give equal results."""
    backbone = tiny_janus()
    settings = {"eps_max": 1.0, "eps_init": 0.5, **perturber_settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        perturber = Perturber(32, 16, eps_mode="relative", **settings)
    scorer = FeatureSimilarity(backbone.image_features)
    return challenge(backbone, perturber, batch_of(), config, scorer), perturber


def update(config: SelfPlaySettings, **perturber_settings: float) -> torch.Tensor:
    """What AdamW adds to C's weights in one step, flat."""
    result, perturber = play(config, **perturber_settings)
    before = [p.detach().clone() for p in perturber.parameters()]
    optimizer = torch.optim.AdamW(perturber.parameters(), lr=1e-3, weight_decay=0.0)
    perturber_step(result, perturber, optimizer)
    return torch.cat(
        [(p - b).flatten() for p, b in zip(perturber.parameters(), before, strict=True)]
    )


def gate_gradient(lambda_norm: float) -> float:
    result, perturber = play(SelfPlaySettings(anchor=1.0, lambda_norm=lambda_norm))
    return torch.autograd.grad(result.objective, perturber.gate)[0].item()


def gradient(config: SelfPlaySettings) -> torch.Tensor:
    result, perturber = play(config)
    gradients = torch.autograd.grad(result.objective, list(perturber.parameters()))
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("name", ["lambda_norm", "l2", "tv", "label_weight"])
def test_every_weight_of_the_objective_turns_the_direction(name):
    weak, strong = gradient(BASE), gradient(replace(BASE, **{name: 80.0}))
    assert cosine_similarity(weak, strong, dim=0) < 0.99


def test_no_setting_only_scales_the_objective():
    """Whatever float setting is multiplied by 8: the gradient never just grows in place."""
    weak = gradient(BASE)
    for name in ("lambda_norm", "l2", "tv", "label_weight", "temperature", "anchor"):
        value = getattr(BASE, name)
        strong = gradient(replace(BASE, **{name: 8 * value}))
        same_direction = cosine_similarity(weak, strong, dim=0) > 1 - 1e-5
        grew = not torch.allclose(weak.norm(), strong.norm(), rtol=1e-4)
        assert not (same_direction and grew), f"{name} multiplies the whole objective"


def test_lambda_moves_the_gate_and_its_optimizer_step():
    gate = {weight: gate_gradient(weight) for weight in (0.0, 1.0, 80.0)}
    assert gate[0.0] > gate[1.0] > gate[80.0]
    assert gate[80.0] < 0  # a heavy price on the norm closes the gate, whatever CE says
    assert not torch.allclose(
        update(SelfPlaySettings(anchor=1.0)), update(SelfPlaySettings(anchor=1.0, lambda_norm=80.0))
    )


def test_eps_and_eps_max_change_candidates_and_update():
    config = SelfPlaySettings(anchor=1.0)
    batch = batch_of()
    plain = challenge(tiny_janus(), NoPerturber(), batch, config).drawing.compact
    changed = []
    for eps in (1e-4, 0.5, 4.0):
        result, _ = play(config, eps_max=2 * eps, eps_init=eps)
        changed.append((result.drawing.compact != plain).float().mean().item())
    assert changed[0] < changed[1] < changed[2]
    assert not torch.allclose(update(config), update(config, eps_init=0.1))
    assert not torch.allclose(update(config), update(config, eps_max=4.0))
