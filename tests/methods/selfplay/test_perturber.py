from __future__ import annotations

import pytest
import torch

from unigame.errors import UserError
from unigame.methods.selfplay import NoPerturber, Perturber, RandomPerturber, build_perturber


def states(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["learned", "random"])
def test_absolute_norm_is_eps_and_within_the_bound(kind):
    perturber = build_perturber(kind, 16, width=8, eps_max=0.02, eps_init=0.01)
    delta = perturber(states(3, 5, 16, scale=40.0))
    assert delta.dtype == torch.float32
    assert torch.allclose(delta.norm(dim=-1), torch.full((3, 5), 0.01), rtol=1e-5)


@pytest.mark.parametrize("kind", ["learned", "random"])
def test_relative_norm_follows_each_samples_own_rms(kind):
    perturber = build_perturber(kind, 16, width=8, eps_max=0.5, eps_init=0.25, eps_mode="relative")
    z = states(2, 5, 16)
    z[1] *= 100
    rms = z.square().sum(-1).mean(-1).sqrt()
    assert torch.allclose(perturber(z).norm(dim=-1), (0.25 * rms)[:, None].expand(2, 5), rtol=1e-5)


def test_bound_holds_whatever_the_gate_learns():
    perturber = Perturber(16, width=8, eps_max=0.02)
    with torch.no_grad():
        perturber.gate.fill_(50.0)
    assert perturber(states(2, 3, 16)).norm(dim=-1).max() <= 0.02 * (1 + 1e-5)


def test_paper_sizes():
    perturber = Perturber(4096)
    assert sum(p.numel() for p in perturber.parameters()) == pytest.approx(2.16e6, rel=0.01)
    assert perturber.eps.item() == pytest.approx(0.01, rel=1e-6)
    assert perturber.layers[-1].bias is None


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_depth_counts_linear_layers(depth):
    perturber = Perturber(16, width=8, depth=depth)
    linear = [m for m in perturber.layers if isinstance(m, torch.nn.Linear)]
    assert len(linear) == depth
    assert perturber(states(1, 2, 16)).shape == (1, 2, 16)


def test_directions_at_the_start_differ_between_tokens():
    delta = Perturber(16, width=8)(states(1, 6, 16))[0]
    cosine = torch.nn.functional.cosine_similarity(delta[:-1], delta[1:], dim=-1)
    assert delta.norm(dim=-1).min() > 0
    assert cosine.abs().max() < 0.999


def test_zero_output_gives_zero_delta_and_finite_gradients():
    perturber = Perturber(16, width=8)
    with torch.no_grad():
        perturber.layers[-1].weight.zero_()
    delta = perturber(states(1, 2, 16))
    delta.sum().backward()
    assert delta.abs().max() == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in perturber.parameters())


def test_float32_under_autocast_and_from_bfloat16_states():
    perturber = Perturber(64, width=8)
    z = states(1, 2, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = perturber(z)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, perturber(z))
    assert perturber(z.bfloat16()).dtype == torch.float32


def test_cast_perturber_is_refused():
    with pytest.raises(ValueError, match="must stay float32"):
        Perturber(16, width=8).bfloat16()(states(1, 2, 16))


def test_random_perturber_resumes_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    perturber = RandomPerturber(seed=3)
    perturber(states(1, 2, 16))
    saved = perturber.generator.get_state()
    expected = perturber(states(1, 2, 16))
    other = RandomPerturber(seed=99)
    other.generator.set_state(saved)
    assert torch.equal(other(states(1, 2, 16)), expected)
    assert not torch.equal(perturber(states(1, 2, 16)), expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert not perturber.state_dict(), "it has no weights, which a checkpoint would take for C's"


def test_no_perturber_is_exactly_zero():
    perturber = NoPerturber()
    assert perturber(states(1, 2, 16)).abs().max() == 0
    assert not list(perturber.parameters())
    assert perturber.eps.item() == 0


def test_building_is_seeded_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, two = build_perturber("learned", 16, seed=1), build_perturber("learned", 16, seed=1)
    other = build_perturber("learned", 16, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.layers[0].weight, two.layers[0].weight)
    assert not torch.equal(one.layers[0].weight, other.layers[0].weight)


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"eps_max": 0.0}, "eps_max"),
        ({"eps_max": float("nan")}, "eps_max"),
        ({"eps_init": 0.02}, "eps_init"),
        ({"eps_init": 0.0}, "eps_init"),
        ({"depth": 0}, "depth"),
        ({"width": 0}, "width"),
        ({"eps_mode": "percent"}, "eps_mode"),
        ({"kind": "clever"}, "clever"),
    ],
)
def test_impossible_values_are_named(kwargs, word):
    with pytest.raises(UserError, match=word):
        build_perturber(**{"kind": "learned", "hidden_size": 16, **kwargs})
