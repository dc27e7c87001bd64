from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.helpers import Records
from unigame.backbones.base import AnswerTokens, PromptTokens
from unigame.data.records import SkippedRow
from unigame.errors import UserError
from unigame.training.collator import RecordCollator


class Words:
    """A preprocessor of blank pictures, and of words as tokens."""

    def pictures(self, images: Any) -> torch.Tensor:
        return torch.zeros(len(images), 3, 16, 16)

    def answer(self, question: str, answer: str) -> AnswerTokens:
        return AnswerTokens(tuple(map(len, question.split())), tuple(map(len, answer.split())))

    def prompt(self, text: str) -> PromptTokens:
        return PromptTokens(tuple(map(len, text.split())))


def test_masks_say_who_has_what() -> None:
    records = [dict(item) for item in Records(3, captions=True).items]
    records[0]["question"] = records[0]["answer"] = None
    records[1]["caption"] = None
    batch = RecordCollator(Words())([*records, SkippedRow("9", "missing", "gone.png")])
    assert batch.has_answer_R.tolist() == [False, True, True]
    assert batch.has_caption_R.tolist() == [True, False, True]
    assert batch.records.questions == ["", "what colour is it", "what colour is it"]
    assert batch.records.ids == ["0", "1", "2"]
    assert batch.num_skipped == 1
    assert batch.unread == ["9: missing (gone.png)"]
    assert batch.records.pictures.shape == (3, 3, 16, 16)
    assert batch.records.asked[1] == AnswerTokens((4, 6, 2, 2), (5,))  # tokenised here, once
    assert batch.records.prompted[0] == PromptTokens((1, 3, 6))
    assert batch.answers.ids == ["1", "2"] and batch.captioned.ids == ["0", "2"]


def test_a_batch_without_answers_keeps_a_row_that_counts_for_nothing() -> None:
    record = {**Records(1, captions=True).items[0], "question": None, "answer": None}
    rows = RecordCollator(Words())([record]).answers
    assert len(rows) == 1 and not rows.counts
    assert rows.questions[0] and rows.answers[0]  # a text that can be asked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "'5' has no image"),
        ({"answer": None}, "give both"),
        ({"question": ""}, "give both"),
        ({"question": None, "answer": None}, "neither an answer nor a caption"),
    ],
)
def test_records_that_cannot_train_are_named(change: dict[str, Any], message: str) -> None:
    record = {**Records(1).items[0], "id": "5", **change}
    with pytest.raises(UserError, match=message):
        RecordCollator(Words())([record])


def test_a_batch_without_pictures_is_an_error() -> None:
    with pytest.raises(UserError, match="no picture"):
        RecordCollator(Words())([SkippedRow("9", "missing", "gone.png")])


def test_a_missing_id_is_no_id() -> None:
    records = [dict(item) for item in Records(3).items]
    del records[0]["id"]
    records[1]["id"] = None
    batch = RecordCollator(Words())(records)
    assert batch.records.ids == ["", "", "2"]
