"""Earlier turns travel in the text of a question, and every family reads them in order."""

import pytest
import torch

from unigame.backbones.base import Backbone
from unigame.turns import join_turns, split_turns

EARLIER = [("what colour is the circle", "red"), ("how many are there", "two")]
LAST = "is it big"


def test_turns_come_out_as_they_went_in() -> None:
    assert split_turns(join_turns(EARLIER, LAST)) == (EARLIER, LAST, "")
    assert split_turns(join_turns(EARLIER, LAST, "big")) == (EARLIER, LAST, "big")
    assert split_turns(join_turns([], LAST, "big")) == ([], LAST, "big")
    assert split_turns(LAST) == ([], LAST, "")
    assert split_turns(join_turns([], "a␟b␞c")) == ([], "a b c", "")
    assert split_turns("not␞ours") == ([], "not␞ours", "")


def test_a_family_reads_earlier_turns_and_trains_the_last_answer(backbone: Backbone) -> None:
    question = join_turns(EARLIER, LAST)
    asked = backbone.preprocessor.answer(question, "yes")
    alone = backbone.preprocessor.answer(LAST, "yes")
    assert asked.answer == alone.answer
    layout = backbone.layout
    assert asked.prompt.count(layout.image_token_id) == alone.prompt.count(layout.image_token_id)
    text = layout.tokenizer.decode([token for token in asked.prompt if token >= 0])
    places = [text.index(word) for word in ("circle", "red", "many", "two", "big")]
    assert places == sorted(places)
    images = torch.rand(1, 3, *[backbone.facts.image_size] * 2)
    with torch.no_grad():
        losses = [backbone.answer_loss(images, [text], ["yes"]) for text in (question, LAST)]
    assert losses[0] != pytest.approx(losses[1].item())
    system = backbone.layout.question_ids(join_turns(EARLIER, LAST, "triangle cross"))
    words = layout.tokenizer.decode([token for token in system if token >= 0])
    if backbone.facts.family in ("emu3", "composed", "bagel"):
        assert words.index("triangle") < words.index("circle") and "helpful" not in words
    else:
        assert tuple(system) == asked.prompt
    assert backbone.preprocessor.prompt(question) == backbone.preprocessor.prompt(LAST)
