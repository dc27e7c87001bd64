"""Records -> one batch: pixels as tensors, texts as lists, and two masks that say who has what.

Mixtures hold records of three kinds: question and answer, caption only, or both. A batch keeps all
rows; ``has_answer_B`` and ``has_caption_B`` say which losses a row takes part in. Tokenising stays
inside the backbone, which owns the prompt layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unigame.data.records import Record, SkippedRow, split_rows
from unigame.errors import UserError

Batch = dict[str, Any]


class GameCollator:
    """Collate records into what the trainer's phases read.

    Args:
        preprocess: a backbone's ``preprocess``: PIL images -> (B, 3, S, S), float in [0, 1].
    """

    def __init__(self, preprocess: Callable[[Sequence[Any]], Tensor]) -> None:
        self.preprocess = preprocess

    def __call__(self, rows: Sequence[Record | SkippedRow | dict[str, Any]]) -> Batch:
        """Batch of ``images`` (B, 3, S, S), texts, ids and masks (see the module docstring).

        Rows whose picture could not be read are left out and counted in ``num_skipped``.

        Raises:
            UserError: for a record without an image, with half a question-answer pair, or with
                neither an answer nor a caption; for a batch without any readable picture.
        """
        records, skipped = split_rows(rows)
        if not records:
            raise UserError(f"no picture of this batch could be read, for example {skipped[:1]}")
        for record in records:
            _check_record(record)
        images = [record["image"] for record in records]
        return {
            "images": self.preprocess(images).detach().to("cpu", torch.float32),
            "questions": [record.get("question") or "" for record in records],
            "answers": [record.get("answer") or "" for record in records],
            "captions": [record.get("caption") or "" for record in records],
            "ids": ["" if (id := record.get("id")) is None else str(id) for record in records],
            "has_answer_B": torch.tensor([bool(record.get("answer")) for record in records]),
            "has_caption_B": torch.tensor([bool(record.get("caption")) for record in records]),
            "num_skipped": len(skipped),
        }


def _check_record(record: Mapping[str, Any]) -> None:
    name = f"record {record.get('id', '(no id)')!r}"
    if record.get("image") is None:
        raise UserError(f"{name} has no image; every record needs one (keys: {sorted(record)})")
    if bool(record.get("question")) != bool(record.get("answer")):
        raise UserError(
            f"{name} has question={record.get('question')!r} but answer={record.get('answer')!r}; "
            "give both, or neither for a caption-only record"
        )
    if not record.get("answer") and not record.get("caption"):
        raise UserError(f"{name} has neither an answer nor a caption, so nothing can be learnt")
