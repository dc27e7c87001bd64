"""Questions of no picture, and of several: the family's own tokens, and each row's own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch.nn import functional as F

from unigame.backbones.bagel import files as bagel_files
from unigame.backbones.base import Backbone
from unigame.backbones.common.layout import picture_order
from unigame.backbones.loading import load_reading
from unigame.turns import join_turns

QUESTION, ANSWER = "what colour is the circle", "red"
EARLIER = [("how many are there", "two")]
SYSTEM = "You are a helpful assistant."  # Emu3's own


def said(role: str, text: str, pictures: int = 0) -> dict[str, Any]:
    content = [{"type": "image"}] * pictures + [{"type": "text", "text": text}]
    return {"role": role, "content": content}


def by_template(backbone: Backbone, *messages: dict[str, Any], answer: bool = False) -> list[int]:
    """Text-only turns as transformers' processor, or tokenizer, of the family makes them."""
    family, processor = backbone.facts.family, backbone.processor
    texts = ["".join(part["text"] for part in message["content"]) for message in messages]
    if family == "chameleon":  # no template: a turn ends with a token, an answer with another
        *turns, last = texts if answer else [*texts, ""]
        ended = "".join(turn + processor.tokenizer.sep_token for turn in turns)
        ids = processor.tokenizer(ended + last)["input_ids"]
        assert len(texts) > 1 or ids == list(processor(text=texts[0])["input_ids"][0])
        return ids
    if family == "bagel":  # no template: each text between two marks, whoever says it
        *turns, last = [*texts, ""] if not answer else texts
        marked = "".join(f"<|im_start|>{turn}<|im_end|>" for turn in turns)
        return processor(f"{marked}<|im_start|>{last}", add_special_tokens=False)["input_ids"]
    if family == "emu3":
        messages = (said("system", SYSTEM), *messages)
    if family == "composed" and backbone.encoder is not None:  # a language model without eyes
        messages = tuple(
            {"role": message["role"], "content": text}
            for message, text in zip(messages, texts, strict=True)
        )
    text = processor.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=not answer
    )
    if family == "composed":
        return processor(text)["input_ids"]
    return list(processor(text=text)["input_ids"][0])


def test_text_alone_is_laid_out_by_the_familys_own_template(backbone: Backbone) -> None:
    layout = backbone.layout
    asked = backbone.preprocessor.answer(QUESTION, ANSWER, 0)
    user, reply = said("user", QUESTION), said("assistant", ANSWER)
    assert list(asked.prompt) == by_template(backbone, user)
    assert layout.image_token_id not in asked.prompt
    whole = [token for token in asked.prompt + asked.answer if token != layout.eos_id]
    by_family = by_template(backbone, user, reply, answer=True)
    assert whole == [token for token in by_family if token != layout.eos_id]
    assert asked.answer[-1] == layout.eos_id
    assert layout.tokenizer.decode(asked.answer, skip_special_tokens=True).strip() == ANSWER
    several = backbone.preprocessor.answer(join_turns(EARLIER, QUESTION), ANSWER, 0)
    before = [said("user", EARLIER[0][0]), said("assistant", EARLIER[0][1])]
    assert list(several.prompt) == by_template(backbone, *before, user)
    assert several.answer == asked.answer
    # One picture, however it is asked for, is what it always was.
    assert backbone.preprocessor.answer(QUESTION, ANSWER) == backbone.preprocessor.answer(
        QUESTION, ANSWER, 1
    )


def places(backbone: Backbone, question: str, num_images: int) -> list[str]:
    """Words of a prompt, and <> for each picture."""
    layout = backbone.layout
    ids = layout.question_ids(question, num_images)
    assert ids.count(layout.image_token_id) == num_images * layout.num_image_tokens
    words, last = [], -1
    for place, token in enumerate(ids):
        if token == layout.image_token_id:
            if last < 0 or place >= last + layout.image_span:
                words.append("<>")
                last = place
        elif token >= 0:
            words.append(str(layout.tokenizer.decode([token])).strip())
    wanted = {"<>", "red", "blue", "green", "two"}
    return [word for word in words if word in wanted]


def test_pictures_stand_where_the_question_says(backbone: Backbone) -> None:
    later = join_turns([("red", "two")], "␝blue")
    assert places(backbone, later, 1) == ["red", "two", "<>", "blue"]
    both = join_turns([("␝red", "two")], "␝blue")
    assert places(backbone, both, 2) == ["<>", "red", "two", "<>", "blue"]
    assert places(backbone, "red blue", 2) == ["<>", "<>", "red", "blue"]
    found = places(backbone, "red␝blue␝green", 2)
    numbered = places(backbone, "red <image 2> blue <image 1> green", 2)
    if found[0] == "<>":  # templates that put the pictures of a turn first
        assert found == numbered == ["<>", "<>", "red", "blue", "green"]
    else:
        assert found == numbered == ["red", "<>", "blue", "<>", "green"]
    # Where the number is another, they are put before the text, and nothing of the marks is left.
    assert places(backbone, "red␝blue␝green", 1) == ["<>", "red", "blue", "green"]
    prompt = backbone.preprocessor.prompt("␝red␝blue")
    assert prompt == backbone.preprocessor.prompt("red blue")


def test_each_row_has_its_own_loss_whatever_stands_beside_it(backbone: Backbone) -> None:
    images = torch.rand(3, 3, *[backbone.facts.image_size] * 2)
    questions = [QUESTION, "how many are there", "is the circle red", "what shape is it"]
    answers = ["red", "one two", "yes", "a big circle"]
    index = [[0], [], [1, 2], []]
    texts = zip(questions, answers, index, strict=True)
    asked = [backbone.preprocessor.answer(q, a, len(shown)) for q, a, shown in texts]

    def losses(rows: list[int], **changes: Any) -> torch.Tensor:
        given = {"images": images, "image_index": [index[row] for row in rows], **changes}
        shown = given.pop("images")
        with torch.no_grad():
            return backbone.answer_token_losses(shown, [asked[row] for row in rows], **given).mean()

    together_B = losses([0, 1, 2, 3])
    alone_B = torch.cat([losses([row]) for row in range(4)])
    torch.testing.assert_close(together_B, alone_B, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        usual_1 = backbone.answer_loss(images[:1], [questions[0]], [answers[0]])
        embeds_BNH = backbone.embed_images(images)
    torch.testing.assert_close(together_B[:1], usual_1, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        together_B, losses([0, 1, 2, 3], images=None, embeds=embeds_BNH), atol=1e-5, rtol=1e-5
    )
    # Of text alone: transformers' own pass over the ids. Pictures that no one shows change nothing.
    for row in (1, 3):
        ids_1L = torch.tensor([asked[row].prompt + asked[row].answer])
        given = {"input_ids": ids_1L}
        if backbone.facts.family == "bagel":
            given = {"inputs_embeds": backbone.base.get_input_embeddings()(ids_1L)}
        with torch.no_grad():
            states_1LH = backbone.language_model(**given).last_hidden_state
            logits_LV = backbone.text_logits(states_1LH)[0, :-1]
        start = len(asked[row].prompt) - 1
        expected = F.cross_entropy(logits_LV[start:], ids_1L[0, start + 1 :])
        torch.testing.assert_close(together_B[row], expected, atol=1e-4, rtol=1e-4)
    text_only = losses([1, 3], images=None, embeds=embeds_BNH[:0])
    torch.testing.assert_close(text_only, together_B[[1, 3]], atol=1e-5, rtol=1e-5)
    # Several pictures: all are read, in their order.
    swapped = losses([0, 1, 2, 3], image_index=[[0], [], [2, 1], []])
    other = losses([0, 1, 2, 3], image_index=[[0], [], [1, 0], []])
    assert abs(swapped[2] - together_B[2]) > 1e-6 and abs(other[2] - together_B[2]) > 1e-6
    torch.testing.assert_close(swapped[:2], together_B[:2], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="1 pictures for"):
        losses([2], image_index=[[1]])


def test_numbered_marks_order_the_pictures_unless_places_are_told() -> None:
    assert picture_order("is <image 2> as <image 1>?", 2) == [1, 0]
    assert picture_order("␝␝is <image 2> as <image 1>?", 2) == [0, 1]
    assert picture_order(join_turns([("<image 2>", "no")], "<image 1>"), 2) == [0, 1]


def test_a_checkpoint_reads_records_without_its_weights(
    backbone: Backbone, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(bagel_files, "put", refuse)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(diffusers.ModelMixin, "from_pretrained", refuse)
    reading, whole = load_reading(checkpoint), backbone.reading
    assert reading.pictures == whole.pictures == range(backbone.max_images + 1)
    for number in range(3):
        assert reading.preprocessor.answer(QUESTION, ANSWER, number) == whole.preprocessor.answer(
            QUESTION, ANSWER, number
        )
    assert reading.preprocessor.prompt(QUESTION) == whole.preprocessor.prompt(QUESTION)
    rules, others = reading.text_rules, whole.text_rules
    assert (rules.marks, rules.max_positions) == (others.marks, others.max_positions)
    if backbone.facts.family == "composed":
        assert reading.preprocessor.layout.end_ids == backbone.layout.end_ids
