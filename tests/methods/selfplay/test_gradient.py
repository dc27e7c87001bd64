"""The gradient of L_C reaches C through the image decoder and the re-encoder: finite differences.

In float64 and with the smooth relaxation of the discrete step, so that a central difference is
exact to its rounding error. The straight-through step uses the same gradient at another forward
value; ``tests/faults`` shows that it arrives.
"""

from __future__ import annotations

import functools

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.methods.selfplay.fake_backbone import FakeBackbone
from tests.methods.selfplay.helpers import make_batch
from tests.tiny import make_tiny_janus
from unigame.backbones import load_backbone
from unigame.methods.selfplay import (
    FeatureSimilarity,
    Perturber,
    Rows,
    SelfPlaySettings,
    challenge,
)
from unigame.methods.selfplay.challenge import teacher_forced_states

STEP = 1e-5
CONFIG = SelfPlaySettings(
    lambda_norm=0.5, l2=1e-2, tv=1e-2, label_weight=0.7, label_floor=0.999, anchor=0.5
)


def fake_game(folder):
    backbone = FakeBackbone(hard=False).double()
    batch = make_batch(3)
    batch.images = batch.images.double()
    return backbone, batch


def janus_game(folder):
    backbone = load_backbone(make_tiny_janus(folder), device="cpu").double()
    for module in backbone.modules():
        if isinstance(module, LlamaRMSNorm):
            # The library's norm always computes in float32, whose rounding would drown a difference
            # over a step of 1e-5; PyTorch's own is the same function in float64.
            size, eps = module.weight.shape, module.variance_epsilon
            module.forward = functools.partial(
                torch.nn.functional.rms_norm, normalized_shape=size, weight=module.weight, eps=eps
            )
    backbone.draw = functools.partial(backbone.draw, hard=False)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    questions, answers = ["what colour is it", "how many"], ["red", "two"]
    return backbone, Rows(images, questions, answers, captions=["a red circle", "two shapes"])


@pytest.mark.parametrize("eps_mode", ["absolute", "relative"])
@pytest.mark.parametrize("game", [fake_game, janus_game])
def test_gradient_equals_finite_differences(game, eps_mode, tmp_path):
    backbone, batch = game(tmp_path)
    size = {"absolute": 2.0, "relative": 0.5}[eps_mode]
    torch.manual_seed(0)
    perturber = Perturber(
        backbone.facts.hidden_size, 8, eps_max=size, eps_init=size / 2, eps_mode=eps_mode
    ).double()
    scorer = FeatureSimilarity(backbone.image_features)
    visual = teacher_forced_states(backbone, batch)
    visual.states_BNH = visual.states_BNH.double()

    def objective() -> torch.Tensor:
        return challenge(backbone, perturber, batch, CONFIG, scorer, visual=visual).objective

    value = objective()
    assert value.dtype == torch.float64
    parameters = dict(perturber.named_parameters())
    gradients = torch.autograd.grad(value, list(parameters.values()))
    generator = torch.Generator().manual_seed(1)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        # A random direction in this parameter: one number that every entry's gradient enters.
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slope = (gradient * direction).sum().item()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * STEP)
                values.append(objective().item())
                parameter.add_(direction, alpha=-sign * STEP)
        measured = (values[0] - values[1]) / (2 * STEP)
        assert abs(slope) > 1e-7, name
        assert slope == pytest.approx(measured, rel=1e-4, abs=1e-8), name
