"""Fault 5: training inserted image features beside their placeholders; inference replaced them.

The rows of embeddings that the language model gets in training must be, position by position, the
ones that transformers' own classes give it at inference, followed by nothing but the answer.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from tests.tiny import random_images, tiny_backbone
from unigame.backbones.janus.model import JanusBackbone

QUESTIONS = ["what colour is the circle", "how many objects are there in this picture"]
ANSWERS = ["red", "two red squares"]
PROMPTS = ["a red circle", "two small green squares left of a blue cross"]


def pictures() -> list[Image.Image]:
    pixels = (random_images(2).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(array) for array in pixels]


def language_model_inputs(backbone: JanusBackbone, run: Any) -> list[dict[str, torch.Tensor]]:
    """What ``run`` feeds to the language model, call by call."""
    seen: list[dict[str, torch.Tensor]] = []
    hook = backbone.janus.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True
    )
    run()
    hook.remove()
    return seen


def test_fault_05_understanding_rows_equal_inference() -> None:
    backbone = tiny_backbone()
    processor = backbone.processor
    images = backbone.preprocess(pictures())
    (trained,) = language_model_inputs(
        backbone, lambda: backbone.answer_loss(images, QUESTIONS, ANSWERS)
    )
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(text=[text], images=[pictures()[row]], return_tensors="pt")
        with torch.no_grad():
            (inferred,) = language_model_inputs(backbone, lambda i=inputs: backbone.janus(**i))
        prompt = inferred["inputs_embeds"][0]
        embeds = trained["inputs_embeds"][row]
        torch.testing.assert_close(embeds[: len(prompt)], prompt)
        answer_ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        following = torch.tensor([*answer_ids, processor.tokenizer.eos_token_id])
        expected = backbone.janus.get_input_embeddings()(following)
        whole = len(prompt) + len(following)
        assert torch.equal(embeds[len(prompt) : whole], expected)
        mask = trained["attention_mask"][row]
        assert mask[:whole].all() and not mask[whole:].any()


def test_fault_05_generation_rows_equal_inference() -> None:
    backbone = tiny_backbone()
    backbone.lean_drawing = False  # so that the class itself is fed; test_cpu_llama compares both
    images = random_images(2)
    codes = backbone.generate_codes(PROMPTS, guidance_scale=1.0, do_sample=False)
    (trained,) = language_model_inputs(
        backbone, lambda: backbone.visual_states(images, PROMPTS, codes=codes)
    )
    (fitted,) = language_model_inputs(
        backbone, lambda: backbone.generation_loss(images, PROMPTS, codes=codes)
    )
    steps = language_model_inputs(
        backbone,
        lambda: backbone.generate_codes(PROMPTS, guidance_scale=1.0, do_sample=False),
    )
    inferred = torch.cat([step["inputs_embeds"] for step in steps], dim=1)
    positions = torch.cat([step["position_ids"] for step in steps], dim=1)
    for rows in (trained, fitted):
        torch.testing.assert_close(rows["inputs_embeds"], inferred)
        assert torch.equal(rows["position_ids"], positions)
        assert torch.equal(rows["attention_mask"], steps[-1]["attention_mask"])


def test_fault_05_each_placeholder_is_replaced_by_its_own_feature() -> None:
    backbone = tiny_backbone()
    images = random_images(2)
    (rows,) = language_model_inputs(
        backbone, lambda: backbone.answer_loss(images, QUESTIONS, ANSWERS)
    )
    features = backbone.embed_images(images)
    first = backbone.layout.question_ids(QUESTIONS[0]).index(backbone.layout.image_token_id)
    last = first + backbone.facts.num_image_tokens
    torch.testing.assert_close(rows["inputs_embeds"][:, first:last], features)
    marks = [backbone.processor.image_start_token, backbone.processor.image_end_token]
    ids = torch.tensor(backbone.processor.tokenizer.convert_tokens_to_ids(marks))
    borders = rows["inputs_embeds"][:, [first - 1, last]]
    assert torch.equal(borders, backbone.janus.get_input_embeddings()(ids).expand_as(borders))
