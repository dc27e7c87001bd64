"""Rows of text alone and of several pictures: U learns them, the game and drawing pass them by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import Records, game_of, logs, lora_weights, make_trainer
from unigame.data.skips import SkipReport
from unigame.errors import UserError
from unigame.training.record_checks import DataCheck, RecordCheck

TEXT, ONE, TWO = "of text alone", "of one picture", "of two pictures"
KINDS = (ONE, TEXT, TWO, TEXT, ONE, TWO, TEXT, ONE)


class Mixed(Records):
    """Rows of these kinds, in this order, with answers of one token and of three."""

    def __init__(self, *kinds: str, captions: bool = False) -> None:
        super().__init__(len(kinds), captions=captions, long_answers=True)
        own = [item["image"] for item in self.items]
        for i, kind in enumerate(kinds):
            if kind != ONE:
                pictures = [] if kind == TEXT else [own[i], own[i - 1]]
                self.items[i] |= {"image": None, "images": pictures, "caption": None}


def one_step(model: Path, folder: Path, data: Records, **settings: Any) -> Any:
    trainer = make_trainer(
        model,
        folder,
        data,
        methods=settings.pop("methods", ["sft"]),
        max_steps=1,
        train_sampling_strategy="sequential",
        **settings,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("reduction", "batches"), [("sample", [(4, 1), (1, 4)]), ("token", [(2, 2)])]
)
def test_a_step_is_the_mean_over_all_answers(tiny_path, tmp_path, reduction, batches) -> None:
    """One batch, or one row at a time, or two: a micro-batch may hold nothing but text."""
    data = Mixed(ONE, TEXT, TWO, TEXT)
    trainer = make_trainer(tiny_path, tmp_path, data, methods=["sft"], loss_reduction=reduction)
    backbone, images = trainer.backbone, []
    losses, tokens = [], []
    for item in data.items:
        images = item.get("images", [item["image"]])
        asked = backbone.preprocessor.answer(item["question"], item["answer"], len(images))
        pixels = backbone.preprocess(images) if images else torch.zeros(1, 3, 16, 16)
        with torch.no_grad():
            found = backbone.answer_token_losses(
                pixels, [asked], image_index=[list(range(len(images)))]
            )
        losses.append(found.mean().item())
        tokens.append(len(asked.answer) if reduction == "token" else 1)
    pairs = zip(losses, tokens, strict=True)
    expected = sum(loss * number for loss, number in pairs) / sum(tokens)
    whole = trainer.compute_loss(trainer.model, trainer.data_collator(data.items))
    assert whole.item() == pytest.approx(expected, abs=1e-5)
    found = []
    for batch, steps in batches:
        run = one_step(
            tiny_path,
            tmp_path,
            data,
            loss_reduction=reduction,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
        )
        (entry,) = logs(run)
        assert entry["loss"] == pytest.approx(expected, abs=1e-4)
        assert (entry["text_rows"], entry["several_picture_rows"]) == (2, 1)
        assert entry["unused_rows"] == 0 and entry["skipped_records"] == 0
        found.append(lora_weights(run))
    first, *others = found
    assert all(torch.allclose(o[n], first[n], atol=1e-4) for o in others for n in first)


def test_the_game_and_drawing_pass_them_by(tiny_path, tmp_path) -> None:
    data = Mixed(*KINDS, captions=True)
    trainer = make_trainer(
        tiny_path,
        tmp_path,
        data,
        eval_dataset=data,
        generation_weight=1.0,
        max_steps=4,
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
        buffer_min_size=1,
    )
    trainer.train()
    played = {str(i) for i, kind in enumerate(KINDS) if kind == ONE}
    held = {str(sample["source"]) for sample in game_of(trainer).buffer.state_dict()["samples"]}
    assert held and held <= played
    entries = logs(trainer)
    assert [entry["text_rows"] for entry in entries] == [1, 1, 0, 1]
    assert [entry["several_picture_rows"] for entry in entries] == [0, 1, 1, 0]
    # A batch of nothing to play on: nothing is challenged, replay goes on, and U learns.
    assert "adversarial_ce" not in entries[1] and "adversarial_ce" in entries[0]
    assert "generation_loss" not in entries[1] and "clean_ce" not in entries[1]
    assert entries[1]["replayed"] > 0 and entries[1]["grad_norm"] > 0
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_batch_of_text_alone_runs_the_passes_of_any_other(tiny_path, tmp_path) -> None:
    """Ranks wait for each other in the losses: so many passes, in the same order."""
    calls: dict[str, list[str]] = {}

    def noting(whole: Any, seen: list[str]) -> Any:
        def noted(*args: Any, **given: Any) -> Any:
            seen.append(given["loss"])
            return whole(*args, **given)

        return noted

    for kind in (ONE, TEXT):
        trainer = make_trainer(tiny_path, tmp_path, Mixed(kind, kind, ONE), generation_weight=1.0)
        trainer.args.understanding_micro_batch = 1
        seen = calls.setdefault(kind, [])
        trainer.backbone.forward = noting(trainer.backbone.forward, seen)
        batch = trainer.data_collator(trainer.train_dataset.items[:2])
        trainer.current_gradient_accumulation_steps = 1  # as ``train`` sets it
        trainer.training_step(trainer.model, batch, None)
    assert calls[TEXT] == calls[ONE]
    assert {"answer", "generation"} <= set(calls[TEXT])


def test_where_pictures_are_read_again_a_pass_of_text_alone_works(
    tiny_path, tmp_path, monkeypatch
) -> None:
    trainer = make_trainer(tiny_path, tmp_path, Mixed(ONE, TEXT), methods=["sft"])
    monkeypatch.setattr(type(trainer.backbone), "reads_frozen", False)
    batch = trainer._read(trainer.data_collator(trainer.train_dataset.items))
    assert batch.others.embeds is None and batch.others.num_pictures == 0
    shared = trainer._shared(batch.others, None)
    assert trainer._loss_of(trainer.model, "answer", [shared]).item() > 0


def test_what_a_family_does_not_take_is_left_out(tiny_path, tmp_path, caplog) -> None:
    check = RecordCheck(pictures=range(1, 3))
    text, one, two = Mixed(TEXT, ONE, TWO).items
    assert check(one) is None and check(two) is None
    assert "no picture" in check(text).reason
    many = {**two, "images": two["images"] * 2}
    assert check(many).reason == "more pictures than the model takes (2)"
    assert "no image" in check({**one, "image": None}).reason  # a picture that is lost is no text
    assert "no image" in check({**two, "images": [one["image"], None]}).reason
    drawn = {**two, "question": None, "answer": None, "caption": "a circle"}
    assert "caption of several pictures" in check(drawn).reason
    # What the family does not take is no mistake in the data: the rest is trained on.
    looked = DataCheck(check)
    looked.look_at([many, many, {**one, "caption": "a circle"}, one], "train_dataset")
    assert "2 skipped: 2 more pictures than the model takes (2)" in caplog.text
    assert (looked.with_answer, looked.without_caption) == (2, 1)
    with pytest.raises(UserError, match=r"more pictures than the model takes \(2\)"):
        DataCheck(check).look_at([many, text], "train_dataset")
    trainer = make_trainer(tiny_path, tmp_path, Mixed(ONE, ONE), methods=["sft"])
    rows = [one, {**two, "images": [one["image"]] * 9}]
    batch = trainer.data_collator(rows)
    assert batch.left_out == ["2\tmore pictures than the model takes (8)"]
    assert batch.others is None and len(batch) == 1


def test_a_game_needs_pictures(tiny_path, tmp_path) -> None:
    with pytest.raises(UserError, match="nothing to attack"):
        make_trainer(tiny_path, tmp_path, Mixed(TEXT, TWO))
    one_step(tiny_path, tmp_path, Mixed(TEXT, TEXT), per_device_train_batch_size=2)


def test_reports_of_several_sources_add_up() -> None:
    one, other = SkipReport(), SkipReport()
    for number in (0, 1, 2):
        one.keep(number)
    other.keep(0)
    other.add("x", "missing image")
    total = SkipReport.merged([("0:", one), ("1:", other)])
    assert total.summary() == (
        "4 rows (2 of text alone, 1 of several pictures), 1 skipped: 1 missing image (1:x)"
    )
