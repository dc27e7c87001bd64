"""Records -> one batch: a row for each, and two masks that say which losses it takes part in.

Mixtures hold records of three kinds: question and answer, caption only, or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image

from unigame.backbones.base import Preprocessor
from unigame.data.records import Record, SkippedRow, split_rows
from unigame.errors import UserError
from unigame.methods.rows import STAND_IN, Batch, Rows
from unigame.training.record_checks import RecordCheck, record_id


class RecordCollator:
    """Collate records into what the trainer's phases read.

    Args:
        preprocessor: the backbone's; small and picklable, so that loader workers tokenise.
        check: leave records out that it finds fault with, in place of raising an error.
    """

    def __init__(
        self,
        preprocessor: Preprocessor,
        check: RecordCheck | None = None,
    ) -> None:
        self.preprocessor = preprocessor
        self.check = check

    def __call__(self, rows: Sequence[Record | SkippedRow | dict[str, Any]]) -> Batch:
        """The batch of these records.

        Rows whose picture could not be read are left out and counted in ``num_skipped``. With a
        ``check``, ``left_out`` says of which records it found fault with what. If no record is
        left, a stand-in without texts keeps the batch alive: other ranks wait for its passes.

        Raises:
            UserError: without ``check``, for a record that cannot be used; for a batch without any
                readable picture.
        """
        records, skipped = split_rows(rows)
        if not records:
            raise UserError(f"no picture of this batch could be read, for example {skipped[:1]}")
        records, left_out = self._usable(records)
        counts = bool(records)
        records = records or [_stand_in()]
        images = self.preprocessor.pictures([record["image"] for record in records])
        whole = Rows(
            images=images.detach().to("cpu", torch.float32),
            questions=[record.get("question") or "" for record in records],
            answers=[record.get("answer") or "" for record in records],
            captions=[record.get("caption") or "" for record in records],
            ids=[record_id(record) for record in records],
            counts=counts,
        )
        texts = zip(whole.questions, whole.answers, strict=True)
        whole.asked = [self.preprocessor.answer(q or STAND_IN, a or STAND_IN) for q, a in texts]
        whole.prompted = [self.preprocessor.prompt(text or STAND_IN) for text in whole.prompts]
        return Batch(
            records=whole,
            has_answer_R=torch.tensor([_has(record, "answer") for record in records]),
            has_caption_R=torch.tensor([_has(record, "caption") for record in records]),
            num_skipped=len(skipped),
            left_out=left_out,
        )

    def _usable(self, records: Sequence[Record]) -> tuple[list[Record], list[str]]:
        """Records without a fault, and a line ``id <tab> reason`` for each of the others."""
        check = self.check or RecordCheck()
        usable: list[Record] = []
        left_out: list[str] = []
        for record in records:
            problem = check(record)
            if problem is None:
                usable.append(record)
            elif self.check is None:
                raise UserError(problem.of(record_id(record)))
            else:
                left_out.append(f"{record_id(record)}\t{problem.reason}")
        return usable, left_out


def _has(record: Record, field: Literal["answer", "caption"]) -> bool:
    return bool((record.get(field) or "").strip())


def _stand_in() -> Record:
    """A record that no loss counts."""
    return {
        "image": Image.new("RGB", (32, 32), "white"),
        "question": None,
        "answer": None,
        "caption": None,
        "id": "",
    }
