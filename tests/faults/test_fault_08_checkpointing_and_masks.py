"""Fault 8: inactive gradient checkpointing, text head on image tokens, padding without a mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.tiny import random_images, stir_lora, tiny_backbone
from unigame.backbones.janus.model import JanusBackbone

QUESTIONS, ANSWERS = ["what colour is the circle", "is it red"], ["red", "no"]
PROMPTS = ["red", "two small green squares left of a blue cross and a small yellow triangle"]


def calls(module: nn.Module) -> Callable[[], int]:
    """Counts the forward passes of ``module`` from now on."""
    count = [0]

    def add(*_: object) -> None:
        count[0] += 1

    module.register_forward_pre_hook(add)
    return lambda: count[0]


def trainable(checkpointing: bool) -> JanusBackbone:
    backbone = tiny_backbone().add_lora().train()
    stir_lora(backbone)
    if checkpointing:
        backbone.gradient_checkpointing_enable()
    return backbone


def test_fault_08_checkpointing_recomputes_every_layer_of_the_language_model() -> None:
    for checkpointing in (False, True):
        backbone = trainable(checkpointing)
        # Inside the layer: newer transformers keep the layer's own hooks out of the recomputation.
        counts = [calls(layer.mlp) for layer in backbone.janus.model.language_model.layers]
        loss = backbone.answer_loss(random_images(2), QUESTIONS, ANSWERS).sum()
        assert [count() for count in counts] == [1, 1]
        loss.backward()
        assert [count() for count in counts] == ([2, 2] if checkpointing else [1, 1])


def test_fault_08_checkpointing_recomputes_the_decoder_and_the_re_encoder() -> None:
    backbone = trainable(checkpointing=True)
    decoder = calls(backbone.janus.model.vqmodel.decoder.conv_in)
    tower = calls(backbone.janus.model.vision_model.encoder.layers[0].mlp)
    states = backbone.visual_states(random_images(2), QUESTIONS)
    z_BNH = states.states_BNH.clone().requires_grad_()
    with backbone.without_dropout():
        drawing = backbone.draw(z_BNH, states.codes)
        loss = backbone.answer_loss(drawing.images, QUESTIONS, ANSWERS).sum()
        assert (decoder(), tower()) == (1, 1)
        torch.autograd.grad(loss, [z_BNH])
    assert (decoder(), tower()) == (2, 2)


def test_fault_08_checkpointing_lowers_what_is_kept_for_backward() -> None:
    def kept(checkpointing: bool) -> int:
        backbone = trainable(checkpointing)
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        parameters = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = backbone.answer_loss(random_images(8), QUESTIONS, ANSWERS)
        size = sum(n for pointer, n in sizes.items() if pointer not in parameters)
        assert loss.requires_grad
        return size

    assert kept(True) < 0.5 * kept(False)


def test_fault_08_drawing_never_runs_the_text_head() -> None:
    backbone = tiny_backbone()
    text_head, image_head = (
        calls(head) for head in (backbone.janus.lm_head, backbone.janus.model.generation_head)
    )
    backbone.generate(PROMPTS)
    assert text_head() == 0
    assert image_head() == backbone.facts.num_image_tokens


def test_fault_08_each_step_of_a_drawing_runs_one_new_token() -> None:
    backbone = tiny_backbone()
    backbone.lean_drawing = False  # the lean way takes one token at a time by construction
    lengths: list[int] = []
    backbone.janus.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    backbone.generate(PROMPTS)
    assert lengths[0] > 1
    assert lengths[1:] == [1] * (backbone.facts.num_image_tokens - 1)


def test_fault_08_padding_is_masked_in_generation() -> None:
    backbone = tiny_backbone()
    for guidance in (1.0, 5.0):
        together = backbone.generate_codes(PROMPTS, guidance_scale=guidance, do_sample=False)
        alone = backbone.generate_codes(PROMPTS[:1], guidance_scale=guidance, do_sample=False)
        assert torch.equal(together[:1], alone)


def test_fault_08_padding_content_changes_no_loss() -> None:
    backbone = tiny_backbone()
    images = random_images(2)
    questions, answers = [QUESTIONS[0], PROMPTS[1]], ANSWERS
    loss_B = backbone.answer_loss(images, questions, answers)
    states = backbone.visual_states(images, PROMPTS).states_BNH
    backbone.layout.pad_id = 20  # an ordinary word
    torch.testing.assert_close(backbone.answer_loss(images, questions, answers), loss_B)
    torch.testing.assert_close(backbone.visual_states(images, PROMPTS).states_BNH, states)
