"""Questions that share a picture, questions about several pictures, and drawings seeded one by one.

What they save must not show: every answer and every drawing equals the one asked for alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from tests.tiny import random_images, tiny_backbone
from unigame.backbones.common.decoding import _inverse_cdf, uniform_numbers
from unigame.backbones.common.layout import picture_order
from unigame.backbones.janus.model import JanusBackbone

QUESTIONS = [
    "what colour is the circle",
    "is it big",
    "how many are there in the picture",
    "is it red or green or blue",
    "describe this image",
]


@pytest.fixture(scope="module")
def backbone() -> JanusBackbone:
    return tiny_backbone()


def prefill_sizes(backbone: JanusBackbone, *args: Any, **options: Any) -> tuple[list, list[str]]:
    """(rows, tokens) of every pass of the language model, and the answers."""
    shapes = []

    def note(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        shapes.append(tuple(inputs["inputs_embeds"].shape[:2]))

    hook = backbone.janus.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        return shapes, backbone.answer(*args, **options)
    finally:
        hook.remove()


def test_a_shared_picture_is_read_once_and_answers_stay_the_same(backbone: JanusBackbone) -> None:
    images, shown = random_images(2), [0, 1, 0, 0, 1]
    alone = [
        backbone.answer(images[[image]], [question], max_new_tokens=8)[0]
        for image, question in zip(shown, QUESTIONS, strict=True)
    ]
    assert len(set(alone)) > 2, "answers that are all alike could not tell rows apart"
    shapes, shared = prefill_sizes(
        backbone, images, QUESTIONS, image_index=[[i] for i in shown], max_new_tokens=8
    )
    assert shared == alone
    # <bos> <|User|> : <begin_of_image> and 16 placeholders, for two pictures and not for five rows.
    assert shapes[0] == (2, 20)
    assert shapes[1][0] == 5 and shapes[1][1] < 20


def test_an_index_without_repeats_equals_plain_answers(backbone: JanusBackbone) -> None:
    images = random_images(3)
    plain = backbone.answer(images, QUESTIONS[:3], max_new_tokens=6)
    picked = backbone.answer(
        images.flip(0), QUESTIONS[:3], image_index=[[2], [1], [0]], max_new_tokens=6
    )
    assert picked == plain


# ---- several pictures ----------------------------------------------------------------------------


def processor_ids(backbone: JanusBackbone, *content: str | None) -> list[int]:
    """The row that transformers' processor makes; None is a picture."""
    parts = [
        {"type": "image"} if part is None else {"type": "text", "text": part} for part in content
    ]
    processor = backbone.processor
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    pictures = [Image.new("RGB", (16, 16))] * content.count(None)
    return processor(text=[text], images=[pictures], return_tensors="pt")["input_ids"][0].tolist()


def test_two_pictures_are_laid_out_as_the_processor_does(backbone: JanusBackbone) -> None:
    layout = backbone.layout
    assert layout.question_ids("is it red", 2) == processor_ids(backbone, None, None, "is it red")
    assert layout.question_ids("the <image 1> or the <image 2> image", 2) == processor_ids(
        backbone, "the", None, "or the", None, "image"
    )
    # A picture stands where it is first named; one mark for two pictures says nothing.
    assert layout.question_ids("<image 1> or <image 2> or <image 1>", 2) == processor_ids(
        backbone, None, "or", None, "or <image 1>"
    )
    assert layout.question_ids("is <image 1> red", 2) == processor_ids(
        backbone, None, None, "is <image 1> red"
    )
    assert layout.question_ids("is <image 1> red") == processor_ids(
        backbone, None, "is <image 1> red"
    )


@pytest.mark.parametrize(
    ("question", "order"),
    [
        ("<image 1> and <image 2>", [0, 1]),
        ("<image 5> left of <image 2>", [1, 0]),  # pictures 2 and 5 were given, in this order
        ("no marks", [0, 1]),
        ("<image 2> alone", [0, 1]),
    ],
)
def test_pictures_go_to_their_own_marks(question: str, order: list[int]) -> None:
    assert picture_order(question, 2) == order


def test_answers_about_several_pictures_equal_transformers_generate(
    backbone: JanusBackbone,
) -> None:
    images, processor = random_images(3), backbone.processor
    pixels_NSS3 = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    rounded = pixels_NSS3.permute(0, 3, 1, 2) / 255
    index = [[2, 0], [1], [2, 1]]
    # The text names picture 2 first, so the model must meet the second of its two pictures first.
    questions = ["is <image 2> left of <image 1>", "is it red", "describe this"]
    contents = [["is", 0, "left of", 2], [1, "is it red"], [2, 1, "describe this"]]
    expected = []
    for content in contents:
        parts = [
            {"type": "image"} if isinstance(part, int) else {"type": "text", "text": part}
            for part in content
        ]
        text = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
        shown = [pixels_NSS3[part].numpy() for part in content if isinstance(part, int)]
        inputs = processor(text=[text], images=[shown], return_tensors="pt")
        whole = backbone.janus.generate(**inputs, do_sample=False, max_new_tokens=6)
        new = whole[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    assert len(set(expected)) == 3
    assert backbone.answer(rounded, questions, image_index=index, max_new_tokens=6) == expected


# ---- drawings ------------------------------------------------------------------------------------


def test_a_seeded_drawing_does_not_depend_on_its_batch(backbone: JanusBackbone) -> None:
    prompts, seeds = ["a red circle", "a small blue square left of it", "green"], [11, 22, 33]
    together = backbone.generate_codes(prompts, seeds=seeds)
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        assert torch.equal(backbone.generate_codes([prompt], seeds=[seed])[0], together[row])
    backwards = backbone.generate_codes(prompts[::-1], seeds=seeds[::-1])
    assert torch.equal(backwards.flip(0), together)
    other = backbone.generate_codes(prompts, seeds=[11, 22, 34])
    assert torch.equal(other[:2], together[:2]) and not torch.equal(other[2], together[2])


def test_seeds_must_be_one_for_each_prompt(backbone: JanusBackbone) -> None:
    with pytest.raises(ValueError, match="2 prompts but 1 seeds"):
        backbone.generate_codes(["red", "blue"], seeds=[1])


def test_seeded_codes_follow_the_probabilities() -> None:
    probs = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3, 0.0])
    uniform = uniform_numbers(range(20_000), 1)[:, 0]
    codes = _inverse_cdf(probs.expand(20_000, -1), uniform)
    shares = torch.bincount(codes, minlength=6) / 20_000
    assert torch.allclose(shares, probs, atol=0.015)
    assert shares[probs == 0].sum() == 0
    edges = _inverse_cdf(probs.expand(2, -1), torch.tensor([0.0, 1.0]))
    assert edges[0] == 1 and edges[1] <= 5
