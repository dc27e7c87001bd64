"""Our cached loops against transformers' own generate, and against the teacher-forced pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.tiny import random_images, tiny_backbone
from unigame.backbones.janus.model import JanusBackbone

PROMPTS = ["a red circle", "two small green squares left of a blue cross", "yellow"]
QUESTIONS = ["what colour is the circle", "how many objects are there in this picture", "is it red"]


@pytest.fixture(scope="module")
def backbone() -> JanusBackbone:
    return tiny_backbone()


def image_inputs(backbone: JanusBackbone, prompts: Sequence[str]) -> dict[str, Any]:
    processor = backbone.processor
    chats = [[{"role": "user", "content": [{"type": "text", "text": p}]}] for p in prompts]
    text = processor.apply_chat_template(chats, add_generation_prompt=True)
    return processor(text=text, generation_mode="image", padding=True, return_tensors="pt")


def transformers_codes(
    backbone: JanusBackbone, prompts: Sequence[str], guidance: float
) -> torch.Tensor:
    # With a cache of our own the class skips its static one, which 5.17 cannot build.
    config = backbone.janus.config.text_config
    return backbone.janus.generate(
        **image_inputs(backbone, prompts),
        generation_mode="image",
        do_sample=False,
        guidance_scale=guidance,
        past_key_values=DynamicCache(config=config),
    )


@pytest.mark.parametrize("guidance", [2.0, 5.0])
def test_greedy_codes_equal_transformers_generate(backbone: JanusBackbone, guidance: float) -> None:
    ours = backbone.generate_codes(PROMPTS, guidance_scale=guidance, do_sample=False)
    assert torch.equal(ours, transformers_codes(backbone, PROMPTS, guidance))
    assert ours.unique().numel() > 8


def test_guidance_changes_the_picture_and_one_means_none(backbone: JanusBackbone) -> None:
    plain = backbone.generate_codes(PROMPTS, guidance_scale=1.0, do_sample=False)
    nearly = backbone.generate_codes(PROMPTS, guidance_scale=1.0 + 1e-6, do_sample=False)
    guided = backbone.generate_codes(PROMPTS, guidance_scale=5.0, do_sample=False)
    assert torch.equal(plain, nearly)
    assert not torch.equal(plain, guided)


def test_teacher_forced_states_predict_the_greedy_codes(backbone: JanusBackbone) -> None:
    codes = backbone.generate_codes(PROMPTS, guidance_scale=1.0, do_sample=False)
    states = backbone.visual_states(random_images(3), PROMPTS, codes=codes).states_BNH
    assert torch.equal(backbone.image_logits(states).argmax(-1), codes)


def test_teacher_forced_states_are_what_generate_hands_to_the_head(
    backbone: JanusBackbone,
) -> None:
    seen: list[torch.Tensor] = []
    head = backbone.janus.model.generation_head
    hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    codes = transformers_codes(backbone, PROMPTS, 5.0)
    hook.remove()
    conditional_BNH = torch.stack(seen, dim=1)[: len(PROMPTS)]
    ours = backbone.visual_states(random_images(3), PROMPTS, codes=codes).states_BNH
    torch.testing.assert_close(ours, conditional_BNH, rtol=1e-4, atol=1e-4)


def test_images_are_the_rendered_codes(backbone: JanusBackbone) -> None:
    codes = backbone.generate_codes(PROMPTS, seed=4)
    pixels = backbone.janus.decode_image_tokens(codes).permute(0, 3, 1, 2)
    expected = (pixels * 0.5 + 0.5).clamp(0, 1)  # the tiny processor's mean and deviation
    torch.testing.assert_close(backbone.generate(PROMPTS, seed=4), expected)


def test_low_temperature_is_greedy_and_zero_is_refused(backbone: JanusBackbone) -> None:
    greedy = backbone.generate_codes(PROMPTS, do_sample=False)
    assert torch.equal(backbone.generate_codes(PROMPTS, temperature=1e-4), greedy)
    with pytest.raises(ValueError, match="temperature=0"):
        backbone.generate_codes(PROMPTS, temperature=0)


def test_answers_equal_transformers_generate(backbone: JanusBackbone) -> None:
    images = random_images(3)
    processor = backbone.processor
    for image, question in zip(images, QUESTIONS, strict=True):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        # The tiny processor keeps 16 x 16 pixels as they are, so this one array serves both.
        pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8)
        inputs = processor(text=[text], images=[pixels.numpy()], return_tensors="pt")
        whole = backbone.janus.generate(**inputs, do_sample=False, max_new_tokens=6)
        new = whole[0, inputs["input_ids"].shape[1] :]
        expected = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        rounded = (pixels.permute(2, 0, 1) / 255)[None]
        assert backbone.answer(rounded, [question], max_new_tokens=6) == [expected]


def test_an_answer_stops_at_its_end_mark_and_leaves_the_batch(backbone: JanusBackbone) -> None:
    widths = []

    def end_the_first_row(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        widths.append(len(logits))
        forced = torch.full_like(logits, -1.0)
        forced[:, 20] = 0.0  # some word
        forced[0, backbone.layout.eos_id] = 1.0
        return forced

    hook = backbone.janus.lm_head.register_forward_hook(end_the_first_row)
    answers = backbone.answer(random_images(3), QUESTIONS, max_new_tokens=10)
    hook.remove()
    word = backbone.processor.tokenizer.decode([20])
    assert answers == ["", word, f"{word} {word}"]
    assert widths == [3, 2, 1]


def test_unknown_options_of_answer_are_refused(backbone: JanusBackbone) -> None:
    with pytest.raises(TypeError, match="num_beams"):
        backbone.answer(random_images(1), ["is it red"], num_beams=4)


def test_captions_answer_the_caption_question(backbone: JanusBackbone) -> None:
    images = random_images(2)
    expected = backbone.answer(images, ["describe the image"] * 2, max_new_tokens=5)
    assert backbone.caption(images, max_new_tokens=5) == expected
