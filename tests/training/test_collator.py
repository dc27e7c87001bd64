from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.helpers import Records
from unigame.data.records import SkippedRow
from unigame.errors import UserError
from unigame.training.collator import RecordCollator


def pixels(images: Any) -> torch.Tensor:
    return torch.zeros(len(images), 3, 16, 16)


def test_masks_say_who_has_what() -> None:
    records = [dict(item) for item in Records(3, captions=True).items]
    records[0]["question"] = records[0]["answer"] = None
    records[1]["caption"] = None
    batch = RecordCollator(pixels)([*records, SkippedRow("9", "missing", "gone.png")])
    assert batch["has_answer_B"].tolist() == [False, True, True]
    assert batch["has_caption_B"].tolist() == [True, False, True]
    assert batch["questions"] == ["", "what colour is it", "what colour is it"]
    assert batch["ids"] == ["0", "1", "2"]
    assert batch["num_skipped"] == 1
    assert batch["images"].shape == (3, 3, 16, 16)


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
        RecordCollator(pixels)([record])


def test_a_batch_without_pictures_is_an_error() -> None:
    with pytest.raises(UserError, match="no picture"):
        RecordCollator(pixels)([SkippedRow("9", "missing", "gone.png")])


def test_a_missing_id_is_no_id() -> None:
    records = [dict(item) for item in Records(3).items]
    del records[0]["id"]
    records[1]["id"] = None
    batch = RecordCollator(lambda images: torch.zeros(len(images), 3, 4, 4))(records)
    assert batch["ids"] == ["", "", "2"]
