from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.methods.selfplay.fake_backbone import WIDTH, FakeBackbone
from tests.methods.selfplay.helpers import make_batch
from unigame.errors import UserError
from unigame.methods.selfplay import (
    FeatureSimilarity,
    HardSampleBuffer,
    NoPerturber,
    NoSimilarity,
    Perturber,
    RandomPerturber,
    Rows,
    SelfPlaySettings,
    challenge,
    mine,
    perturber_step,
    stack_compact,
)
from unigame.methods.semantics import SimilarityScorer

STRONG = {"eps_max": 4.0, "eps_init": 2.0}


@pytest.fixture
def backbone() -> FakeBackbone:
    return FakeBackbone()


@pytest.fixture
def perturber() -> Perturber:
    torch.manual_seed(0)
    return Perturber(WIDTH, width=16, **STRONG)


class CountingScorer(SimilarityScorer):
    """Mean brightness difference; remembers whether gradients were on."""

    def __init__(self) -> None:
        super().__init__()
        self.grad_modes: list[bool] = []

    def forward(self, images, reference_images, texts, **features):
        self.grad_modes.append(torch.is_grad_enabled())
        reference = reference_images.repeat_interleave(len(images) // len(reference_images), dim=0)
        return 1 - (images - reference).square().mean(dim=(1, 2, 3))


def test_shapes_and_rows(backbone, perturber):
    config = SelfPlaySettings(num_candidates=3)
    generator = torch.Generator().manual_seed(0)
    batch = make_batch(4)
    result = challenge(backbone, perturber, batch, config, generator=generator)
    assert result.ce_BK.shape == result.hardness_BK.shape == result.similarity_BK.shape == (4, 3)
    assert result.drawing.images.shape == (12, 3, 8, 8)
    assert result.tokens_ENH.shape[0] == len(result.ce_BK) * result.ce_BK.shape[1]
    # Row b * K + k is candidate k of sample b: asked question b, judged by answer b.
    images = result.drawing.images.detach().view(4, 3, 3, 8, 8)
    for b in range(4):
        alone = backbone.answer_loss(
            images[b], batch.questions[b : b + 1], batch.answers[b : b + 1]
        )
        assert torch.allclose(alone, result.ce_BK[b], atol=1e-6)
    assert not torch.equal(images[:, 0], images[:, 1])


def test_nothing_is_computed_twice(backbone, perturber):
    batch, buffer = make_batch(), HardSampleBuffer()
    result = challenge(backbone, perturber, batch, SelfPlaySettings())
    optimizer = torch.optim.AdamW(perturber.parameters(), lr=1e-3)
    perturber_step(result, perturber, optimizer)
    mine(result, batch, buffer, SelfPlaySettings())
    assert backbone.calls["visual_states"] == 1
    assert backbone.calls["draw"] == 1
    assert backbone.calls["answer_loss"] == 1
    known = make_batch(codes=backbone.encode_images(batch.images))
    before = backbone.calls["encode_images"]
    challenge(backbone, perturber, known, SelfPlaySettings())
    assert backbone.calls["encode_images"] == before


def test_c_ascends_and_only_c_gets_a_gradient(backbone, perturber):
    backbone.hard = False  # one smooth objective, so that ascent must show
    optimizer = torch.optim.AdamW(perturber.parameters(), lr=1e-2)
    batch, config = make_batch(), SelfPlaySettings()
    frozen = {k: v.clone() for k, v in backbone.state_dict().items()}
    objectives = []
    for _ in range(15):
        result = challenge(backbone, perturber, batch, config)
        objectives.append(result.objective.item())
        assert perturber_step(result, perturber, optimizer) > 0
    assert objectives[-1] > objectives[0]
    assert all(p.grad is None for p in backbone.parameters())
    assert all(torch.equal(v, frozen[k]) for k, v in backbone.state_dict().items())


def test_clipping_limits_c_alone(backbone, perturber):
    result = challenge(backbone, perturber, make_batch(), SelfPlaySettings())
    before = [p.detach().clone() for p in perturber.parameters()]
    norm = perturber_step(
        result, perturber, torch.optim.SGD(perturber.parameters(), lr=1.0), max_norm=1e-3
    )
    moved = torch.cat(
        [(p - b).flatten() for p, b in zip(perturber.parameters(), before, strict=True)]
    )
    assert norm > 1e-3
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_gradients_can_be_reduced_before_the_step(backbone, perturber):
    def to_zero(gradients: list[torch.Tensor]) -> None:
        for gradient in gradients:
            gradient.zero_()

    result = challenge(backbone, perturber, make_batch(), SelfPlaySettings())
    before = [p.detach().clone() for p in perturber.parameters()]
    optimizer = torch.optim.SGD(perturber.parameters(), lr=1.0)
    assert perturber_step(result, perturber, optimizer, reduce=to_zero) == 0
    assert all(torch.equal(p, b) for p, b in zip(perturber.parameters(), before, strict=True))


def test_a_gradient_that_is_not_finite_leaves_c_alone(backbone, perturber):
    result = challenge(backbone, perturber, make_batch(), SelfPlaySettings())
    result.objective = result.objective * float("nan")
    before = [p.detach().clone() for p in perturber.parameters()]
    norm = perturber_step(result, perturber, torch.optim.AdamW(perturber.parameters(), lr=1.0))
    assert not torch.isfinite(torch.tensor(norm))
    assert all(torch.equal(p, b) for p, b in zip(perturber.parameters(), before, strict=True))


@pytest.mark.parametrize("space", ["decoder", "tokens"])
def test_controls_without_parameters_build_no_graph(backbone, space):
    config, batch = SelfPlaySettings(perturb_space=space), make_batch()
    for perturber in (NoPerturber(), RandomPerturber(**STRONG)):
        result = challenge(backbone, perturber, batch, config)
        assert not result.objective.requires_grad
        assert perturber_step(result, perturber, optimizer=None) == 0.0
        assert mine(result, batch, HardSampleBuffer(), config).accepted > 0


def test_round_trip_redraws_without_attack(backbone):
    result = challenge(backbone, NoPerturber(), make_batch(), SelfPlaySettings())
    visual = backbone.visual_states(make_batch().images, make_batch().prompts)
    expected = backbone.draw(visual.states_BNH, visual.codes)
    assert torch.equal(result.drawing.compact, expected.compact)
    assert result.metrics["eps"] == result.metrics["delta_relative"] == 0


def test_token_space_draws_nothing_and_stores_tokens(backbone, perturber):
    config = SelfPlaySettings(perturb_space="tokens", hard_quantile=0.0)
    batch, buffer = make_batch(), HardSampleBuffer()
    scorer = FeatureSimilarity(backbone.image_features)
    result = challenge(backbone, perturber, batch, config, scorer)
    assert backbone.calls["draw"] == backbone.calls["visual_states"] == 0
    assert result.drawing is None and result.codes is None
    clean = backbone.embed_images(batch.images)
    assert torch.allclose(result.tokens_ENH, clean + perturber(clean))
    assert perturber_step(result, perturber, torch.optim.SGD(perturber.parameters(), lr=0.1)) > 0
    assert mine(result, batch, buffer, config).accepted == 4
    assert buffer.samples[0].compact.dtype == torch.float32
    again = backbone.answer_loss(
        None,
        [s.question for s in buffer.samples],
        [s.answer for s in buffer.samples],
        embeds=stack_compact(buffer.samples),
    )
    stored = torch.tensor([s.hardness for s in buffer.samples])
    assert torch.allclose(again, stored, atol=1e-5)


def test_mined_samples_render_to_the_drawn_pictures(backbone, perturber):
    config = SelfPlaySettings(num_candidates=2, hard_quantile=0.5)
    batch, buffer = make_batch(), HardSampleBuffer()
    generator = torch.Generator().manual_seed(0)
    result = challenge(backbone, perturber, batch, config, generator=generator)
    report = mine(result, batch, buffer, config, step=7)
    assert report.candidates == 8 and report.accepted == report.kept == len(buffer) == 4
    assert report.acceptance_rate == 0.5
    pictures = backbone.render(stack_compact(buffer.samples))
    flat = result.hardness_BK.flatten()
    for sample, picture in zip(buffer.samples, pictures, strict=True):
        row = int((flat - sample.hardness).abs().argmin())
        assert torch.allclose(picture, result.drawing.images[row].detach(), atol=1e-6)
        b = row // 2
        assert sample.question == batch.questions[b] and sample.answer == batch.answers[b]
        assert sample.source == batch.ids[b] and sample.step == 7


def test_scorer_runs_with_gradient_only_for_the_label_term(backbone, perturber):
    batch = make_batch()
    scorer, judge = CountingScorer(), CountingScorer()
    challenge(backbone, perturber, batch, SelfPlaySettings(), scorer)
    assert scorer.grad_modes == [False]
    labelled = SelfPlaySettings(label_weight=1.0)
    challenge(backbone, perturber, batch, labelled, scorer)
    assert scorer.grad_modes == [False, True]  # once: filter and label term share the call
    challenge(backbone, perturber, batch, labelled, scorer, label_scorer=judge)
    assert scorer.grad_modes == [False, True, False] and judge.grad_modes == [True]


def test_label_term_holds_the_picture_in_place(backbone):
    backbone.hard = False
    batch, drift = make_batch(), {}
    for weight in (0.0, 30.0):
        torch.manual_seed(0)
        perturber = Perturber(WIDTH, width=16, **STRONG)
        optimizer = torch.optim.AdamW(perturber.parameters(), lr=1e-2)
        config = SelfPlaySettings(label_weight=weight)
        for _ in range(25):
            result = challenge(backbone, perturber, batch, config, CountingScorer())
            perturber_step(result, perturber, optimizer)
        drift[weight] = 1 - result.metrics["similarity"]
    assert drift[30.0] < drift[0.0]


def test_label_weight_needs_a_scorer(backbone, perturber):
    for scorer in (None, NoSimilarity()):
        with pytest.raises(UserError, match="label_weight"):
            challenge(backbone, perturber, make_batch(), SelfPlaySettings(label_weight=1.0), scorer)


def test_metrics_say_what_happened(backbone, perturber):
    config = SelfPlaySettings(label_weight=0.5)
    result = challenge(backbone, perturber, make_batch(), config, CountingScorer())
    metrics = result.metrics
    assert metrics["eps"] == pytest.approx(2.0, rel=1e-5)
    rms = result.states_BNH.square().sum(-1).mean(-1).sqrt()
    assert metrics["delta_relative"] == pytest.approx((2.0 / rms).mean().item(), rel=1e-4)
    changed = (result.drawing.compact != result.codes).float().mean().item()
    assert metrics["codes_changed"] == pytest.approx(changed) and changed > 0
    assert metrics["label_penalty"] == pytest.approx(1 - metrics["similarity"], abs=1e-6)
    assert metrics["adversarial_ce"] == pytest.approx(result.ce_BK.mean().item())
    assert all(isinstance(value, float) for value in metrics.values())


def test_generator_decides_and_the_global_one_is_untouched(backbone, perturber):
    config, before = SelfPlaySettings(num_candidates=2), torch.get_rng_state()

    def codes(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        result = challenge(backbone, perturber, make_batch(), config, generator=generator)
        return result.drawing.compact

    assert torch.equal(codes(1), codes(1))
    assert not torch.equal(codes(1), codes(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_known_visual_states_are_reused(backbone, perturber):
    batch = make_batch()
    visual = backbone.visual_states(batch.images, batch.prompts)
    before = backbone.calls["visual_states"]
    reused = challenge(backbone, perturber, batch, SelfPlaySettings(), visual=visual)
    assert backbone.calls["visual_states"] == before
    fresh = challenge(backbone, perturber, batch, SelfPlaySettings())
    assert torch.equal(reused.ce_BK, fresh.ce_BK)


def test_without_gradient(backbone, perturber):
    result = challenge(backbone, perturber, make_batch(), SelfPlaySettings(), with_grad=False)
    assert not result.objective.requires_grad
    with pytest.raises(ValueError, match="with_grad=False"):
        perturber_step(result, perturber, torch.optim.SGD(perturber.parameters(), lr=1.0))


def test_batch_defaults_and_mismatches():
    images = torch.zeros(2, 3, 8, 8)
    batch = Rows(images, ["q1", "q2"], ["a1", "a2"], captions=["q1", "a caption"])
    assert batch.texts == ["q1 a1", "a caption"]
    assert batch.ids == ["", ""]
    assert Rows(images, ["q1", "q2"], ["a1", "a2"]).prompts == ["q1", "q2"]
    with pytest.raises(ValueError, match="1 answers for 2 pictures"):
        Rows(images, ["q1", "q2"], ["a1"])


@pytest.mark.parametrize(
    "bad",
    [
        {"perturb_space": "pixels"},
        {"num_candidates": 0},
        {"perturb_space": "tokens", "num_candidates": 2},
        {"temperature": 0.0},
        {"hard_quantile": 1.5},
        {"label_weight": -1.0},
        {"clip_floor": 30},
        {"lambda_norm": float("nan")},
    ],
)
def test_impossible_settings_are_named(bad):
    with pytest.raises(UserError, match=list(bad)[-1]):
        replace(SelfPlaySettings(), **bad)
