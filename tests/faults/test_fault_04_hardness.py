"""Fault 4: hardness was one mean loss copied to the whole micro-batch, measured with dropout on."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import peft
import pytest
import torch

from tests.faults.play import batch_of, strong_perturber, tiny_janus
from tests.tiny import make_tiny_janus
from unigame.backbones import load_backbone
from unigame.methods.answers import own_loss
from unigame.methods.selfplay import (
    HardSampleBuffer,
    SelfPlaySettings,
    challenge,
    mine,
    perturber_step,
)


@pytest.fixture(scope="module")
def with_dropout():
    """A tiny Janus in training mode whose LoRA dropout would be hard to overlook."""
    with TemporaryDirectory() as folder:
        backbone = load_backbone(make_tiny_janus(folder), device="cpu")
    targets = list(backbone.facts.lora_targets)
    backbone.add_lora(peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=targets))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.trainable_parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return backbone.train()


def test_each_candidate_has_the_hardness_it_would_have_alone():
    backbone, batch, buffer = tiny_janus(), batch_of(), HardSampleBuffer()
    config = SelfPlaySettings(hard_quantile=0.0)
    result = challenge(backbone, strong_perturber(), batch, config)
    mine(result, batch, buffer, config)
    stored = [s.hardness for s in buffer.samples]
    assert max(stored) - min(stored) > 1e-3
    for sample in buffer.samples:
        b = batch.ids.index(sample.source)
        image = result.drawing.images[b : b + 1].detach()
        alone = own_loss(backbone.answer_token_losses(image, [sample.question], [sample.answer]))
        assert alone.item() == pytest.approx(sample.hardness, abs=1e-4)


def test_dropout_is_off_while_measuring_and_on_again_afterwards(with_dropout):
    backbone, batch = with_dropout, batch_of()
    noisy = [
        backbone.answer_loss(batch.images, batch.questions, batch.answers).detach()
        for _ in range(2)
    ]
    assert not torch.equal(*noisy)
    perturber = strong_perturber()
    first, second = (challenge(backbone, perturber, batch, SelfPlaySettings()) for _ in range(2))
    assert torch.equal(first.hardness_BK, second.hardness_BK)
    dropouts = [m for m in backbone.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    assert dropouts and all(m.training for m in dropouts)


def test_dropout_stays_off_when_checkpointing_runs_the_model_again(with_dropout):
    """Backward recomputes activations; with dropout back on, C's gradient would be of another U."""
    backbone, batch = with_dropout, batch_of()
    moved = []
    for checkpointing in (False, True):
        if checkpointing:
            backbone.gradient_checkpointing_enable()
        perturber = strong_perturber()
        before = [p.detach().clone() for p in perturber.parameters()]
        result = challenge(backbone, perturber, batch, SelfPlaySettings())
        perturber_step(result, perturber, torch.optim.SGD(perturber.parameters(), lr=0.1))
        moved.append(
            torch.cat(
                [(p - b).flatten() for p, b in zip(perturber.parameters(), before, strict=True)]
            )
        )
    assert moved[0].norm() > 0
    assert torch.allclose(moved[0], moved[1], atol=1e-7)
