"""Records -> one batch: a row for each, and two masks that say which losses it takes part in.

Mixtures hold records of three kinds: question and answer, caption only, or both. Questions of no
picture, or of several, stand apart: they train U, and nothing is drawn of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image

from unigame.backbones.base import Preprocessor
from unigame.backbones.common.layout import picture_order
from unigame.data.records import Record, SkippedRow, pictures_of, split_rows
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
        alone = [record for record in records if len(pictures_of(record)) == 1]
        others = [record for record in records if len(pictures_of(record)) != 1]
        counts, alone = bool(alone), alone or [_stand_in()]
        images = self.preprocessor.pictures([pictures_of(record)[0] for record in alone])
        images = images.detach().to("cpu", torch.float32)
        whole = Rows(images=images, counts=counts, **_texts_of(alone))
        texts = zip(whole.questions, whole.answers, strict=True)
        whole.asked = [self.preprocessor.answer(q or STAND_IN, a or STAND_IN) for q, a in texts]
        whole.prompted = [self.preprocessor.prompt(text or STAND_IN) for text in whole.prompts]
        return Batch(
            records=whole,
            has_answer_R=torch.tensor([_has(record, "answer") for record in alone]),
            has_caption_R=torch.tensor([_has(record, "caption") for record in alone]),
            num_skipped=len(skipped),
            unread=[f"{row.id}: {row.reason} ({row.detail})" for row in skipped],
            left_out=left_out,
            others=self._others(others, whole) if others else None,
        )

    def _others(self, records: Sequence[Record], whole: Rows) -> Rows:
        """Questions of no picture, or of several."""
        shown = [pictures_of(record) for record in records]
        pictures = [picture for each in shown for picture in each]
        images = whole.pictures[:0]
        if pictures:
            images = self.preprocessor.pictures(pictures).detach().to(images)
        index: list[list[int]] = []
        for record, each in zip(records, shown, strict=True):
            order, before = picture_order(record["question"] or "", len(each)), sum(map(len, index))
            index.append([before + place for place in order])
        rows = Rows(images=images, image_index=index, **_texts_of(records))
        asked = zip(rows.questions, rows.answers, shown, strict=True)
        rows.asked = [self.preprocessor.answer(q, a, len(each)) for q, a, each in asked]
        return rows

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


def _texts_of(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "questions": [record.get("question") or "" for record in records],
        "answers": [record.get("answer") or "" for record in records],
        "captions": [record.get("caption") or "" for record in records],
        "ids": [record_id(record) for record in records],
    }


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
