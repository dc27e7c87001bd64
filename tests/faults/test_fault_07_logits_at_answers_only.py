"""Fault 7: logits over the whole vocabulary at every position set the memory peak."""

from __future__ import annotations

import torch

from tests.tiny import random_images, tiny_backbone

QUESTIONS = ["what colour is the circle", "how many objects are there in this picture"]
ANSWERS = ["red", "two red squares"]


def rows_of_text_head(run) -> int:  # type: ignore[no-untyped-def]
    backbone = tiny_backbone()
    rows: list[int] = []
    backbone.janus.lm_head.register_forward_pre_hook(
        lambda _, args: rows.append(args[0].numel() // args[0].shape[-1])
    )
    run(backbone)
    return sum(rows)


def test_fault_07_the_text_head_gets_answer_rows_only() -> None:
    rows = rows_of_text_head(lambda b: b.answer_loss(random_images(2), QUESTIONS, ANSWERS))
    assert rows == (1 + 1) + (3 + 1)  # answer words and one end mark each
    assert tiny_backbone().answer_lengths(QUESTIONS, ANSWERS).tolist() == [1 + 1, 3 + 1]


def test_fault_07_the_text_head_gets_no_image_position() -> None:
    images = random_images(2)
    assert rows_of_text_head(lambda b: b.visual_states(images, QUESTIONS)) == 0
    assert rows_of_text_head(lambda b: b.generation_loss(images, QUESTIONS)) == 0


def test_fault_07_the_loss_is_that_of_full_logits() -> None:
    backbone = tiny_backbone()
    images = random_images(2)
    loss_B = backbone.answer_loss(images, QUESTIONS, ANSWERS)
    for b, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        prompt = backbone.layout.question_ids(question)
        target = backbone.layout.answer_ids(question, answer)
        labels = torch.tensor([[-100] * len(prompt) + target])
        pixels = backbone.pixels.normalise(images[b : b + 1])
        output = backbone.janus(
            input_ids=torch.tensor([prompt + target]), pixel_values=pixels, labels=labels
        )
        torch.testing.assert_close(loss_B[b], output.loss)
