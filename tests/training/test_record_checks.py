"""Records that cannot be trained on are found before the first step, or left out and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from tests.tiny import shared_tiny_janus, tiny_backbone
from tests.tiny_bagel import tiny_bagel
from tests.tiny_chameleon import tiny_chameleon
from tests.tiny_composed import shared_vlm_unet
from tests.tiny_emu3 import tiny_emu3
from tests.training.helpers import Records, logs, make_trainer
from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.data import VQA, Mixture
from unigame.errors import UserError
from unigame.training import UniGameConfig, UniGameTrainer, record_checks
from unigame.training.record_checks import DataCheck, RecordCheck
from unigame.turns import PICTURE, REPLY, TURN

PLACEHOLDER = "<image_placeholder>"


class Foreign(Dataset[dict[str, Any]]):
    """Somebody's dataset: rows cost their picture."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def rows_with(change: dict[str, Any], at: int = 13, size: int = 20) -> list[dict[str, Any]]:
    rows = [{**Records(4).items[i % 4], "id": f"r{i}"} for i in range(size)]
    rows[at].update(change)
    return rows


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"question": f"{PLACEHOLDER}\nwhat colour is it"}, PLACEHOLDER),
    ({"answer": "red<begin_of_image>"}, "<begin_of_image>"),
    ({"caption": "a <|User|> draws"}, "<|User|>"),
    ({"answer": 7}, "int"),
    ({"answer": float("nan")}, "float"),
    ({"answer": ["red", "green"]}, "list"),
    ({"question": 3.5}, "float"),
    ({"caption": ["a circle"]}, "list"),
    ({"image": "pictures/a.png"}, "str"),
    ({"image": [[0, 1], [2, 3]]}, "list"),
    ({"image": None}, "no image"),
    ({"image": Image.new("F", (8, 8))}, "no picture that can be shown"),
    ({"image": Image.new("L", (0, 5))}, "no picture that can be shown"),
    ({"question": "what colour \ud83d"}, "half a letter"),
    ({"answer": "\udcff"}, "half a letter"),
    ({"caption": "red \ud800"}, "half a letter"),
    ({"answer": "  "}, "without an answer"),
    ({"answer": "red " * 600}, "too many tokens"),
    ({"question": "what " * 600}, "too many tokens"),
    ({"caption": "red " * 600}, "too many tokens"),
]


@pytest.mark.parametrize(("change", "named"), FAULTS)
def test_a_record_that_cannot_be_used_costs_its_row_and_is_counted(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    trainer = make_trainer(
        shared_tiny_janus(),
        tmp_path,
        Foreign(rows_with(change)),
        max_steps=2,
        per_device_train_batch_size=10,
        methods=["sft"],
    )
    trainer.train()
    assert sum(entry["skipped_records"] for entry in logs(trainer)) == 1
    assert list(trainer.data_check.report.skipped) == ["r13"]
    assert named in trainer.data_check.report.skipped["r13"]


def test_a_batch_of_nothing_but_unusable_records_does_not_end_the_game(tmp_path: Path) -> None:
    trainer = make_trainer(
        shared_tiny_janus(),
        tmp_path,
        rows_with({"question": PLACEHOLDER}, at=11, size=12),
        max_steps=12,
        per_device_train_batch_size=1,
        missing_captions="question",
    )
    trainer.train()
    assert trainer.state.global_step == 12


@pytest.mark.parametrize("change", [change for change, _ in FAULTS if "image" not in change])
def test_all_texts_are_looked_at_before_the_first_step(
    change: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = tiny_backbone()
    check = DataCheck(RecordCheck(backbone.text_rules))
    check.look_at(rows_with(change), "train_dataset")
    assert "train_dataset" in caplog.text and "19 rows, 1 skipped" in caplog.text
    assert "r13" in caplog.text


@pytest.mark.parametrize("kind", [list, Foreign])
@pytest.mark.parametrize(("change", "named"), [FAULTS[0], FAULTS[4], FAULTS[8], FAULTS[10]])
def test_a_fault_of_most_records_is_refused_before_the_first_step(
    kind: Any, change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    rows = [{**row, **change} for row in rows_with({})]
    trainer = make_trainer(shared_tiny_janus(), tmp_path, kind(rows), methods=["sft"])
    with pytest.raises(UserError, match="train_dataset") as caught:
        trainer.train()
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert trainer.state.global_step == 0


def test_held_out_data_is_looked_at_too(tmp_path: Path) -> None:
    eval_data = {"mine": [{**row, "answer": 1} for row in rows_with({})]}
    trainer = make_trainer(shared_tiny_janus(), tmp_path, eval_dataset=eval_data)
    with pytest.raises(UserError, match=r"eval_dataset\['mine'\]"):
        trainer.train()


def test_a_damaged_picture_that_was_only_opened_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).convert("RGB").save(file)
    file.write_bytes(file.read_bytes()[:2000])
    problem = RecordCheck()({**Records(1).items[0], "image": Image.open(file)})
    assert problem is not None and problem.reason == "corrupt image"


def test_texts_of_joined_and_cut_datasets_are_found_without_their_pictures(tmp_path: Path) -> None:
    import datasets

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    table = tmp_path / "t.csv"
    table.write_text("image,question,answer\na.png,what is it,red\na.png,<end_of_image>,red\n")
    read = VQA(path=table)
    (tmp_path / "a.png").unlink()  # nobody needs it
    hugging = datasets.Dataset.from_dict({"question": [PLACEHOLDER], "answer": ["a"]})
    good = rows_with({})
    check = RecordCheck(tiny_backbone().text_rules)
    cases: list[tuple[Any, str]] = [
        (ConcatDataset([Subset(read, [1]), Foreign(good), Foreign(good)]), "'1'"),  # type: ignore[list-item]
        (Mixture([Foreign(good), read]), "'1:1'"),
        (hugging, PLACEHOLDER),
    ]
    for dataset, named in cases:
        with pytest.raises(UserError, match=named):
            DataCheck(check).look_at(dataset, "train_dataset")


def test_words_that_the_tokenizer_does_not_know_are_said_with_their_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    check = RecordCheck(tiny_backbone().text_rules)
    chat = f"{PICTURE}what colour is it{REPLY}red{TURN}is it red"  # marks that no model reads
    known = [{**row, "question": chat} for row in rows_with({})]
    DataCheck(check).look_at(known, "data")
    assert not caplog.records
    foreign = [*known[:15], *({**row, "answer": "它是红色的"} for row in known[15:])]
    DataCheck(check).look_at(foreign, "data")
    (record,) = caplog.records
    said = record.getMessage()
    assert (
        said.startswith("unigame: warning: data: 5 of 20 rows looked at (25%)")
        and "'它是红色的'" in said
    )
    DataCheck(check, speaks=False).look_at([*foreign], "data")
    assert len(caplog.records) == 1


def test_unknown_words_are_looked_for_in_rows_spread_over_a_large_dataset(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(record_checks, "READ", 10)
    rows = rows_with({}, size=40)
    rows[36]["answer"] = "它"
    DataCheck(RecordCheck(tiny_backbone().text_rules)).look_at(rows, "data")
    assert "data: 1 of 10 rows looked at (10%)" in caplog.text


def test_looking_at_a_foreign_dataset_leaves_random_states_alone() -> None:
    import random

    import numpy as np
    import torch

    class Restless(Foreign):
        def __getitem__(self, index: int) -> dict[str, Any]:
            torch.rand(1), np.random.rand(), random.random()
            return super().__getitem__(index)

    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), np.random.get_state()[2], random.getstate()

    before = states()
    DataCheck(RecordCheck()).look_at(Restless(rows_with({})), "train_dataset")
    assert states() == before


# ---- the marks of every family -------------------------------------------------------------------


def composed() -> Backbone:
    return load_backbone(shared_vlm_unet(), device="cpu")


@pytest.mark.parametrize("make", [tiny_backbone, tiny_bagel, tiny_emu3, tiny_chameleon, composed])
def test_no_text_may_hold_a_mark_of_its_family(make: Any) -> None:
    backbone = make()
    rules, layout = backbone.text_rules, backbone.layout
    ends = layout.tokenizer.eos_token
    image = layout.picture_mark
    for mark in (ends, image):
        for field in ("question", "answer", "caption"):
            texts = {"question": "what", "answer": "red", "caption": "a", field: f"x {mark} y"}
            found = rules.problem(texts)
            assert found is not None and repr(mark) in found[0] and field in found[0]
    plain = {"question": "a < b <image 1> [x]?", "answer": "<b>", "caption": ""}
    assert rules.problem(plain) is None


@pytest.mark.parametrize("make", [tiny_backbone, tiny_bagel, tiny_emu3, tiny_chameleon, composed])
def test_a_row_is_as_long_as_what_the_model_reads(make: Any) -> None:
    backbone = make()
    rules, layout = backbone.text_rules, backbone.layout
    answer = "red green " * 20
    texts = {"question": "what colour", "answer": answer, "caption": ""}
    length = len(layout.question_ids("what colour")) + len(layout.answer_ids("what colour", answer))
    assert rules.problem(texts, max_length=length) is None
    found = rules.problem(texts, max_length=length - 1)
    assert found is not None and f"max_length: {length - 1}" in found[0]
    assert rules.max_positions == backbone.base.config.get_text_config().max_position_embeddings


# ---- max_length ----------------------------------------------------------------------------------


def test_max_length_is_a_filter_that_was_asked_for(tmp_path: Path) -> None:
    rows = [
        {**row, "answer": "red " * 40 if i % 2 else "red"} for i, row in enumerate(rows_with({}))
    ]
    trainer = make_trainer(
        shared_tiny_janus(), tmp_path, rows, max_length=60, methods=["sft"], max_steps=5
    )
    trainer.train()
    assert trainer.data_check.report.counts() == {"too many tokens (max_length: 60)": 10}


@pytest.mark.parametrize("value", [10, 10_000])
def test_an_impossible_max_length_is_refused(value: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"max_length.*{value}"):
        make_trainer(shared_tiny_janus(), tmp_path, list(rows_with({})), max_length=value).train()


@pytest.mark.parametrize(
    ("dataset", "named"),
    [
        ([], "has 0 rows"),
        ({"image": None, "question": "q", "answer": "a"}, "one dict"),
        ("train.json", "one str"),
        (Path("train.json"), "Path"),
        ((row for row in Records(4).items), "generator without a length"),
    ],
)
def test_what_is_no_dataset_is_named_before_the_model(tmp_path, dataset, named):
    with pytest.raises(UserError, match=named):
        UniGameTrainer("no-model", UniGameConfig(output_dir=str(tmp_path)), train_dataset=dataset)
