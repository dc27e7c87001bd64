"""C with the another freedom: shared directions, strengths, bounded content, missed acceptance."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from tests.methods.selfplay.fake_backbone import TOKENS, WIDTH, FakeBackbone
from tests.methods.selfplay.helpers import make_batch
from unigame.errors import UserError
from unigame.methods.base import Run
from unigame.methods.selfplay import (
    FeatureSimilarity,
    HardSampleBuffer,
    Perturber,
    RandomPerturber,
    SelfPlay,
    SelfPlaySettings,
    build_perturber,
    challenge,
    mine,
    perturber_objective,
    perturber_step,
)
from unigame.methods.selfplay.heads import Heads
from unigame.methods.selfplay.redrawn import redrawn

STRONG = {"eps_max": 4.0, "eps_init": 2.0}
HEADS = {"perturber_scope": "heads", "perturber_heads": 3}


def states(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def heads_of_c(heads: int = 3, **more: object) -> Perturber:
    torch.manual_seed(0)
    return Perturber(WIDTH, width=16, **STRONG, scope="shared", heads=heads, **more)


@pytest.mark.parametrize("kind", ["learned", "random"])
def test_a_shared_direction_is_one_for_all_tokens_of_a_picture(kind: str) -> None:
    delta = build_perturber(kind, 16, width=8, **STRONG, scope="shared")(states(3, 5, 16))
    assert torch.equal(delta, delta[:, :1].expand(3, 5, 16))
    assert not torch.allclose(delta[0], delta[1])
    assert torch.allclose(delta.norm(dim=-1), torch.full((3, 5), 2.0))


def test_each_sample_is_perturbed_by_the_head_it_drew() -> None:
    z, c = states(3, 5, WIDTH), heads_of_c()
    directions_BMH = c.directions(z)
    delta = c(z, torch.tensor([2, 0, 1]))
    for b, m in enumerate((2, 0, 1)):
        assert torch.allclose(F.normalize(delta[b, 0], dim=-1), directions_BMH[b, m], atol=1e-6)
    assert torch.equal(c(z), c(z, torch.zeros(3, dtype=torch.long)))


def test_the_diversity_term_pushes_heads_apart() -> None:
    z, c = states(4, 5, WIDTH), heads_of_c(2)
    with torch.no_grad():  # the second head nearly as the first
        rows = c.layers[-1].weight.view(2, WIDTH, -1)
        rows[1] = rows[0] + 0.1 * rows[1]
    optimizer = torch.optim.AdamW(c.parameters(), lr=1e-2)
    before = c.overlap(z).mean().item()
    settings = SelfPlaySettings(
        **{**HEADS, "perturber_heads": 2}, diversity_weight=50.0, num_candidates=2
    )
    for _ in range(10):
        perturber_step(challenge(FakeBackbone(), c, make_batch(4), settings), c, optimizer)
    assert before > 0.9 and c.overlap(z).mean().item() < before - 0.1


def test_a_fixed_gate_stays_where_it_was_set() -> None:
    c = build_perturber("learned", WIDTH, width=16, **STRONG, fixed=True)
    optimizer = torch.optim.AdamW(c.parameters(), lr=0.1)
    weight = c.layers[0].weight.detach().clone()
    perturber_step(
        challenge(FakeBackbone(), c, make_batch(), SelfPlaySettings(lambda_norm=9.0)), c, optimizer
    )
    assert c.eps.item() == pytest.approx(2.0)
    assert not torch.equal(c.layers[0].weight, weight)


def test_every_candidate_draws_a_strength_and_a_head_from_the_drawing_generator() -> None:
    settings = SelfPlaySettings(num_candidates=8, strengths=[0.25, 1.0], **HEADS)
    backbone, c = FakeBackbone(), heads_of_c()

    def play(seed: int):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(seed)
        return challenge(backbone, c, make_batch(), settings, generator=generator)

    everywhere = torch.get_rng_state()
    one, again, other = play(0), play(0), play(1)
    assert torch.equal(everywhere, torch.get_rng_state())
    assert set(one.own.strength_BK.flatten().tolist()) == {0.25, 1.0}
    assert set(one.own.head_BK.flatten().tolist()) == {0, 1, 2}
    assert torch.equal(one.ce_BK, again.ce_BK) and torch.equal(one.own.head_BK, again.own.head_BK)
    assert not torch.equal(one.own.head_BK, other.own.head_BK)
    mean = 2.0 * one.own.strength_BK.mean().item()
    assert one.metrics["delta_norm"] == pytest.approx(mean, rel=1e-4)


def test_candidates_alike_are_as_without_the_switches() -> None:
    """A single strength of 1 and a single head draw nothing from the generator."""
    backbone, c = FakeBackbone(), heads_of_c(1)
    found = [
        challenge(
            backbone,
            c,
            make_batch(),
            SelfPlaySettings(num_candidates=3, **scope),
            generator=torch.Generator().manual_seed(0),
        )
        for scope in ({}, {"perturber_scope": "shared"})
    ]
    assert torch.equal(found[0].ce_BK, found[1].ce_BK) and found[0].own is None


def test_the_redrawn_baseline_meets_the_noise_of_candidates_that_differ() -> None:
    settings = SelfPlaySettings(num_candidates=3, strengths=[0.5, 1.0], **HEADS)
    backbone, generator = FakeBackbone(), torch.Generator().manual_seed(5)
    noise = generator.get_state()
    c = heads_of_c()
    with torch.no_grad():
        c.gate.fill_(-50.0)  # no perturbation: the same pictures
    attacked = challenge(backbone, c, make_batch(), settings, generator=generator)
    assert torch.equal(
        redrawn(backbone, make_batch(), settings, noise=noise).drawing.compact,
        attacked.drawing.compact,
    )


def test_random_heads_are_new_directions_for_every_candidate() -> None:
    c = RandomPerturber(**STRONG, scope="shared")
    z, head_B = states(2, TOKENS, WIDTH), torch.zeros(2, dtype=torch.long)
    assert not torch.equal(c(z, head_B), c(z, head_B))


# ---- content and acceptance ------------------------------------------------------------------
def test_content_is_bounded_by_a_logarithm_and_the_loss_by_a_cap() -> None:
    ce_BK = torch.tensor([[1.0, 9.0]], requires_grad=True)
    similarity_BK = torch.tensor([[-0.7 - torch.e + 1.0, 3.0]])
    delta = torch.zeros(1, 2, 3)
    value = perturber_objective(
        ce_BK, delta, ce_cap=4.0, content_weight=0.3, label_floor=-0.7, similarity_BK=similarity_BK
    )
    assert value.item() == pytest.approx((1 + 4) / 2 - 0.3 * (1 + 0) / 2)
    value.sum().backward()
    assert ce_BK.grad is not None and ce_BK.grad.tolist() == [[0.5, 0.0]]


def test_log_odds_have_a_gradient_where_u_is_sure() -> None:
    ce = torch.tensor([[1e-4], [0.1], [2.0]], dtype=torch.float64, requires_grad=True)
    delta = torch.zeros(3, 1, 2)
    found = perturber_objective(ce, delta, loss="log_odds")
    right = (-ce[:, 0].detach()).exp()
    torch.testing.assert_close(found, ((1 - right) / right).log())
    (slope,) = torch.autograd.grad(found.sum(), ce)
    torch.testing.assert_close(slope[:, 0], 1 / (1 - right))  # times dCE/dlogit = 1 - p: always 1
    capped = perturber_objective(ce.detach(), delta, loss="log_odds", ce_cap=1.0)
    assert capped[2] == 1.0 and capped[0] == found[0]
    assert perturber_objective(torch.zeros(1, 1), delta[:1], loss="log_odds").isfinite().all()


def test_each_candidate_pays_its_own_heads_weight() -> None:
    ce, similarity = torch.zeros(1, 2), torch.tensor([[0.0, 0.0]])
    each = perturber_objective(
        ce,
        torch.zeros(1, 1, 2),
        similarity_BK=similarity,
        content_weight=torch.tensor([[0.0, 3.0]]),
    )
    torch.testing.assert_close(each, torch.tensor([-1.5 * math.log(2)]))


def test_a_universal_direction_is_one_vector_for_every_picture() -> None:
    universal = Perturber(8, depth=0, eps_max=1.0, eps_init=0.5, scope="shared", heads=2)
    one, other = states(1, 4, 8), states(1, 4, 8) + 3
    assert torch.equal(universal.directions(one), universal.directions(other))
    assert [name for name, _ in universal.named_parameters()] == ["gate", "shift"]
    before = universal.shift.detach().clone()
    rows = universal.restart(1, seed=5)
    assert list(rows.values()) == [slice(1, 2)]
    assert torch.equal(universal.shift[0], before[0]) and not torch.equal(
        universal.shift[1], before[1]
    )
    norms = universal(one).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.5))
    with pytest.raises(UserError, match="depth=0"):
        Perturber(8, depth=0, eps_max=1.0, eps_init=0.5)


def test_content_pulls_c_back_by_its_scorer() -> None:
    backbone, c = FakeBackbone(), heads_of_c(1)
    scorer = FeatureSimilarity(backbone.image_features)
    plain, held = (
        challenge(backbone, c, make_batch(), SelfPlaySettings(content_weight=w), scorer)
        for w in (0.0, 2.0)
    )
    assert held.objective < plain.objective and held.metrics["label_penalty"] > 0
    with pytest.raises(UserError, match=r"content_weight=1\.0"):
        challenge(backbone, c, make_batch(), SelfPlaySettings(content_weight=1.0))


def test_missed_keeps_what_is_verified_and_read_wrong() -> None:
    settings = SelfPlaySettings(accept="missed", clip_floor=0.5, hard_quantile=1.0)
    backbone, buffer = FakeBackbone(), HardSampleBuffer()
    result = challenge(backbone, heads_of_c(1), make_batch(4), settings)
    result.right_BK = torch.tensor([[True], [False], [False], [False]])
    result.similarity_BK = torch.tensor([[0.9], [0.9], [0.4], [float("nan")]])
    report = mine(result, make_batch(4), buffer, settings)
    assert report.accepted == 1
    assert [sample.source for sample in buffer.samples] == ["image-1"]


# ---- heads that destroy content ----------------------------------------------------------------
def test_a_head_starts_anew_where_too_few_of_a_window_were_verified() -> None:
    heads, c = Heads(3, below=0.5, window=4, seed=0), heads_of_c()
    optimizer = torch.optim.AdamW(c.parameters(), lr=1e-2)
    perturber_step(
        challenge(FakeBackbone(), c, make_batch(32), SelfPlaySettings(**HEADS)), c, optimizer
    )
    before = c.directions(states(2, 5, WIDTH)).detach()
    head_BK = torch.tensor([[0, 0, 1], [1, 1, 2]])
    verified_BK = torch.tensor([[True, True, False], [False, True, False]])
    counts = heads.counted(head_BK, verified_BK)
    assert counts.tolist() == [[2, 3, 1], [2, 1, 0]]
    assert heads.see(counts) == []  # no window is full
    assert heads.see(counts) == [1]  # 4 of 4, and 2 of 6; the third is at 2 candidates
    assert (heads.drawn, heads.verified) == ([0, 0, 2], [0, 0, 0])
    heads.restart(1, c, optimizer)
    after = c.directions(states(2, 5, WIDTH)).detach()
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1], atol=0.1)
    momentum = optimizer.state[c.layers[-1].weight]["exp_avg"].view(3, WIDTH, -1)
    assert (momentum[1] == 0).all() and (momentum[0] != 0).any()
    assert heads.restarts == [0, 1, 0]


def test_a_restarted_head_moves_as_gently_as_the_others() -> None:
    heads, c = Heads(2, below=0.5, window=4, seed=0), heads_of_c(2, depth=0)
    shift = c.shift
    assert shift is not None
    optimizer = torch.optim.AdamW(c.parameters(), lr=1e-2, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)

    def moved(steps: int) -> torch.Tensor:
        """How far each head went in each step on average, in learning rates."""
        found = torch.zeros(2)
        for _ in range(steps):
            before = shift.detach().clone()
            shift.grad = 0.3 + torch.randn(shift.shape, generator=generator)
            shift.grad[1] *= scale
            optimizer.step()
            found += (shift.detach() - before).abs().mean(1) / (1e-2 * steps)
        return found

    scale = 1.0
    moved(300)
    scale = 1e-3  # a lost head has hardly any gradient, and so a small second moment
    moved(3000)
    heads.restart(1, c, optimizer)
    scale = 1.0
    _, restarted = moved(20)
    assert restarted < 1.0, "a new Adam goes one learning rate at first"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"diversity_weight": 1.0}, "diversity_weight"),
        ({"restart_below": 0.1}, "restart_below"),
        ({"anchor_mode": "near"}, "anchor"),
        ({"perturber_depth": 0}, "perturber_depth=0"),
        ({"verified_target": 0.5}, "verified_target=0.5"),
        ({"strengths": []}, "strengths"),
        ({"strengths": [0.5, 1.5]}, "1.5"),
        ({"label_similarity": "dino"}, "dino"),
    ],
)
def test_switches_that_cannot_act_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        SelfPlaySettings(**settings)


# ---- anchors on latents --------------------------------------------------------------------------
@pytest.mark.parametrize(("codes", "mode"), [(None, "near"), (8, "near"), (None, "own")])
def test_an_anchor_that_reaches_no_further_on_latents_is_said(
    codes: int | None, mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = FakeBackbone()
    backbone.facts = replace(backbone.facts, codebook_size=codes)
    args = SimpleNamespace(seed=0, per_device_train_batch_size=4, output_dir=str(tmp_path))
    SelfPlay(anchor=1.0, anchor_mode=mode).setup(Run(args, backbone, torch.device("cpu")))
    told = [text for text in caplog.messages if "anchor_mode=near" in text and "'fake'" in text]
    assert len(told) == (codes is None and mode == "near")
