"""Fault 1: C trained without the image decoder, then applied to a tensor it never trained on."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.faults.play import batch_of, strong_perturber, tiny_janus
from unigame.methods.selfplay import (
    HardSampleBuffer,
    SelfPlaySettings,
    challenge,
    mine,
    stack_compact,
)

CONFIG = SelfPlaySettings(hard_quantile=0.0, anchor=1.0)


def test_gradient_reaches_c_through_the_decoder_and_only_there(monkeypatch):
    backbone, perturber, batch = tiny_janus(), strong_perturber(), batch_of()
    draw, drawn = backbone.draw, []

    def remember(*args, **kwargs):
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(backbone, "draw", remember)
    result = challenge(backbone, perturber, batch, CONFIG)
    parameters = list(perturber.parameters())
    gradients = torch.autograd.grad(result.objective, [*parameters, drawn[0].images])
    assert all(gradient.abs().max() > 0 for gradient in gradients)

    def cut(*args, **kwargs):
        drawing = draw(*args, **kwargs)
        return replace(drawing, images=drawing.images.detach())

    # With the drawn pixels cut off nothing of L_C may reach C: no path goes around the decoder.
    monkeypatch.setattr(backbone, "draw", cut)
    assert not challenge(backbone, perturber, batch, CONFIG).objective.requires_grad


def test_mined_picture_differs_from_the_clean_one_and_from_the_plain_redrawing():
    backbone, perturber, batch = tiny_janus(), strong_perturber(), batch_of()
    buffer = HardSampleBuffer()
    result = challenge(backbone, perturber, batch, CONFIG)
    mine(result, batch, buffer, CONFIG)
    own = backbone.encode_images(batch.images)
    visual = backbone.visual_states(batch.images, batch.prompts, codes=own)
    plain = backbone.draw(visual.states_BNH, own, anchor=CONFIG.anchor).images
    clean = backbone.render(own)
    for sample in buffer.samples:
        b = batch.ids.index(sample.source)
        mined = backbone.render(stack_compact([sample]))[0]
        assert (mined - clean[b]).abs().max() > 1e-2
        assert (mined - plain[b]).abs().max() > 1e-2
    assert len(buffer) == len(batch)


def test_c_reads_the_same_tensor_in_training_and_in_mining():
    backbone, perturber, batch = tiny_janus(), strong_perturber(), batch_of()
    seen = []
    handle = perturber.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    buffer = HardSampleBuffer()
    result = challenge(backbone, perturber, batch, CONFIG)
    mine(result, batch, buffer, CONFIG)
    handle.remove()
    assert len(seen) == 1  # mining takes the training step's candidates: C is not run again
    visual = backbone.visual_states(batch.images, batch.prompts)
    assert torch.allclose(seen[0], visual.states_BNH, atol=1e-6)
    again = backbone.draw(
        visual.states_BNH + perturber(visual.states_BNH), visual.codes, anchor=CONFIG.anchor
    )
    for sample in buffer.samples:
        b = batch.ids.index(sample.source)
        assert torch.equal(stack_compact([sample])[0], again.compact[b])
