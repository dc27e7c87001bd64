"""Fault 2: free-running pictures of the question text that keep another picture's answer."""

from __future__ import annotations

import torch

from tests.faults.play import batch_of, strong_perturber, tiny_janus
from unigame.methods.selfplay import (
    HardSampleBuffer,
    NoPerturber,
    SelfPlaySettings,
    challenge,
    mine,
    stack_compact,
)


def test_candidates_are_redrawings_of_their_own_image_by_its_own_prompt(monkeypatch):
    backbone, batch, calls = tiny_janus(), batch_of(), []
    visual_states = backbone.visual_states

    def recorded(images, prompts, *, codes=None):
        calls.append((images, list(prompts)))
        return visual_states(images, prompts, codes=codes)

    def never(*args, **kwargs):
        raise AssertionError("the game generated freely")

    monkeypatch.setattr(backbone, "visual_states", recorded)
    monkeypatch.setattr(backbone, "generate", never)
    challenge(backbone, strong_perturber(), batch, SelfPlaySettings())
    ((images, prompts),) = calls
    assert torch.equal(images, batch.images)
    assert prompts == list(batch.prompts) and prompts != list(batch.questions)


def test_without_attack_and_with_a_strong_anchor_the_candidate_is_the_image_itself():
    backbone, batch = tiny_janus(), batch_of()
    result = challenge(backbone, NoPerturber(), batch, SelfPlaySettings(anchor=1e4))
    own = backbone.encode_images(batch.images)
    assert torch.equal(result.drawing.compact, own)
    assert torch.allclose(result.drawing.images, backbone.render(own), atol=1e-5)
    assert len({tuple(codes.tolist()) for codes in own}) == len(batch)  # and no two are alike


def test_label_stays_tied_to_the_image_that_was_redrawn():
    backbone, batch, buffer = tiny_janus(), batch_of(), HardSampleBuffer()
    config = SelfPlaySettings(anchor=1e4, num_candidates=2, hard_quantile=0.0)
    generator = torch.Generator().manual_seed(0)
    result = challenge(backbone, NoPerturber(), batch, config, generator=generator)
    mine(result, batch, buffer, config)
    own = backbone.encode_images(batch.images)
    assert len(buffer) == 6
    for sample in buffer.samples:
        b = batch.ids.index(sample.source)
        assert torch.equal(stack_compact([sample])[0], own[b])
        assert (sample.question, sample.answer) == (batch.questions[b], batch.answers[b])
