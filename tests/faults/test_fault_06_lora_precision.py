"""Fault 6, the LoRA half: bfloat16 adapter weights hardly moved at a small learning rate."""

from __future__ import annotations

import torch

from tests.tiny import random_images, stir_lora, tiny_backbone

QUESTIONS, ANSWERS = ["what colour is the circle", "is it red"], ["red", "no"]


def share_moved(dtype: torch.dtype, steps: int = 8) -> float:
    """Share of LoRA entries that differ after ``steps`` of AdamW at 5e-6 on a bfloat16 base."""
    backbone = tiny_backbone("bfloat16").add_lora().train()
    stir_lora(backbone, scale=1.0)
    weights = backbone.trainable_parameters()
    for weight in weights:
        weight.data = weight.data.to(dtype)
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=5e-6)
    for _ in range(steps):
        backbone.answer_loss(random_images(2), QUESTIONS, ANSWERS).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = [(b != w).float().flatten() for b, w in zip(before, weights, strict=True)]
    return torch.cat(changed).mean().item()


def test_fault_06_lora_weights_are_float32_and_move_on_a_bfloat16_base() -> None:
    backbone = tiny_backbone("bfloat16").add_lora()
    assert {p.dtype for p in backbone.trainable_parameters()} == {torch.float32}
    base = {p.dtype for p in backbone.janus.model.language_model.layers.parameters()}
    assert base == {torch.float32, torch.bfloat16}
    assert share_moved(torch.float32) > 0.99
    assert share_moved(torch.bfloat16) < 0.2  # the fault itself, so that this test can see it


def test_fault_06_losses_and_states_are_float32_on_a_bfloat16_base() -> None:
    exact, half = tiny_backbone(), tiny_backbone("bfloat16")
    images = random_images(2)
    states = half.visual_states(images, QUESTIONS)
    assert states.states_BNH.dtype == torch.float32
    assert half.draw(states.states_BNH, states.codes).images.dtype == torch.float32
    for loss in (half.answer_loss, half.generation_loss):
        texts = (QUESTIONS, ANSWERS) if loss == half.answer_loss else (QUESTIONS,)
        loss_B = loss(images, *texts)
        assert loss_B.dtype == torch.float32
        expected = getattr(exact, loss.__name__)(images, *texts)
        torch.testing.assert_close(loss_B, expected, rtol=0.03, atol=0.03)


def test_fault_06_the_head_that_draws_sees_a_perturbation_bfloat16_would_swallow() -> None:
    backbone = tiny_backbone("bfloat16")
    z_BNH = backbone.visual_states(random_images(2), QUESTIONS).states_BNH
    direction = torch.randn(z_BNH.shape, generator=torch.Generator().manual_seed(0))
    delta = 1e-4 * direction / direction.norm(dim=-1, keepdim=True)
    assert ((z_BNH + delta).bfloat16() == z_BNH.bfloat16()).float().mean() > 0.95
    change = backbone.image_logits(z_BNH + delta) - backbone.image_logits(z_BNH)
    tenfold = backbone.image_logits(z_BNH + 10 * delta) - backbone.image_logits(z_BNH)
    cosine = torch.cosine_similarity(10 * change.flatten(), tenfold.flatten(), dim=0)
    assert cosine > 0.999
    ratio = tenfold.norm() / change.norm()
    assert 9.5 < ratio < 10.5


def test_fault_06_a_pass_without_gradient_does_not_cut_lora_out_of_the_next() -> None:
    backbone = tiny_backbone().add_lora().train()
    stir_lora(backbone)
    images = random_images(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        backbone.visual_states(images, QUESTIONS)
        loss = backbone.answer_loss(images, QUESTIONS, ANSWERS).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in backbone.trainable_parameters())
