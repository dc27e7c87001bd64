"""The token rows of training are those of inference, as ``JanusProcessor`` itself makes them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests.tiny import shared_tiny_janus
from unigame.backbones.janus.layout import JanusLayout, build_processor, build_tokenizer
from unigame.backbones.janus.load import load_processor
from unigame.errors import UserError


@pytest.fixture(params=[False, True], ids=["plain", "system-prompt"])
def layout(request: pytest.FixtureRequest) -> JanusLayout:
    processor = load_processor(shared_tiny_janus())
    processor.use_default_system_prompt = request.param
    return JanusLayout(processor)


def chat(layout: JanusLayout, *content: dict[str, str]) -> str:
    conversation = [{"role": "user", "content": list(content)}]
    return layout.processor.apply_chat_template(conversation, add_generation_prompt=True)


def test_question_rows_equal_the_processors(layout: JanusLayout) -> None:
    question = "what colour is the circle"
    text = chat(layout, {"type": "image"}, {"type": "text", "text": question})
    picture = Image.new("RGB", (16, 16))
    inputs = layout.processor(text=[text], images=[picture], return_tensors="pt")
    assert layout.question_ids(question) == inputs["input_ids"][0].tolist()
    assert layout.question_ids(question).count(layout.image_token_id) == layout.num_image_tokens


def test_prompt_rows_equal_the_processors(layout: JanusLayout) -> None:
    text = chat(layout, {"type": "text", "text": "a red circle"})
    inputs = layout.processor(text=[text], generation_mode="image", return_tensors="pt")
    assert layout.prompt_ids("a red circle") == inputs["input_ids"][0].tolist()


def test_answers_follow_the_prompt_and_end_with_the_end_mark(layout: JanusLayout) -> None:
    ids = layout.answer_ids("what colour is the circle", " red circle ")
    words = layout.tokenizer.convert_ids_to_tokens(ids)
    assert words == ["red", "circle", layout.tokenizer.eos_token]
    assert layout.answer_ids("what colour is the circle", "") == [layout.eos_id]


def test_a_placeholder_in_the_question_is_refused(layout: JanusLayout) -> None:
    with pytest.raises(UserError, match="holds the image placeholder"):
        layout.question_ids("what is <image_placeholder> here")


def test_padding_puts_masks_and_positions_on_the_tokens() -> None:
    layout = JanusLayout(load_processor(shared_tiny_janus()))
    rows = [[7, 8, 9], [5]]
    left = layout.pad(rows, "left", torch.device("cpu"))
    right = layout.pad(rows, "right", torch.device("cpu"))
    pad = layout.pad_id
    assert left.ids_BL.tolist() == [[7, 8, 9], [pad, pad, 5]]
    assert left.mask_BL.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert left.positions_BL.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert right.ids_BL.tolist() == [[7, 8, 9], [5, pad, pad]]
    assert right.mask_BL.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert right.positions_BL[0].tolist() == [0, 1, 2] and right.positions_BL[1, 0] == 0


def test_a_processor_without_chat_template_is_refused() -> None:
    processor = build_processor(["red"], 16, 16)
    processor.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        JanusLayout(processor)


def test_tokenizer_splits_punctuation_and_ignores_case() -> None:
    tokenizer = build_tokenizer(["red", "circle"])
    ids = tokenizer("Red circle?", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["red", "circle", "?"]
    assert tokenizer.decode(ids) == "red circle ?"
    assert tokenizer("plum", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    with pytest.raises(ValueError, match="'x-ray'"):
        build_tokenizer(["x-ray"])


def test_the_chat_template_writes_finished_turns_too() -> None:
    processor = build_processor(["red", "what", "is", "it"], 16, 16)
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what is it "}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    text = processor.apply_chat_template([ask, reply, ask], add_generation_prompt=True)
    turn = "<|User|>: <image_placeholder>\nwhat is it\n\n<|Assistant|>:"
    assert text == f"{turn} red{processor.tokenizer.eos_token}{turn}"
