"""RecA in the trainer: its rows, its loss, resuming, and what it says of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tiny import tiny_backbone
from tests.tiny_chameleon import shared_tiny_chameleon, tiny_chameleon
from tests.training.helpers import Records, logs, lora_weights, make_trainer, whole_and_resumed
from unigame.backbones.base import Backbone
from unigame.errors import UserError
from unigame.methods.base import Run
from unigame.methods.reca import TEMPLATES, RecA
from unigame.methods.reca.method import choose, scale_gradient
from unigame.methods.registry import build_methods
from unigame.methods.rows import Batch, Rows
from unigame.training.recipe import load_recipe


class Mixed(Records):
    """Every second row holds nothing but a picture."""

    picture_only = True

    def __init__(self, size: int):
        super().__init__(size)
        for item in self.items[1::2]:
            item["question"] = item["answer"] = None


def set_up(backbone: Backbone, **settings: Any) -> RecA:
    method = RecA(**settings)
    method.setup(Run(SimpleNamespace(seed=0), backbone, torch.device("cpu")))
    return method


# ---- settings and templates ----------------------------------------------------------------------
def test_there_are_many_different_templates_of_some_length() -> None:
    assert len({text.lower() for text in TEMPLATES}) == len(TEMPLATES) >= 60
    assert all(4 <= len(text.split()) <= 30 for text in TEMPLATES)
    assert len({text.split()[0] for text in TEMPLATES}) >= 15


def test_it_is_listed_in_recipes_with_its_settings(tmp_path: Path) -> None:
    words = ["--methods", "selfplay,reca", "--reca.weight", "0.5", "--share", "0.25"]
    recipe = load_recipe("janus_nano", [*words, "--output_dir", str(tmp_path / "run")])
    assert recipe.settings_of("reca").weight == 0.5
    assert recipe.settings_of("reca").share == 0.25
    for name, value in (("share", "0"), ("pictures", "some"), ("reconstruction_size", "0")):
        with pytest.raises(UserError, match=f"{name}={value!r}?|{name}={value}"):
            load_recipe("janus_nano", ["--methods", "reca", f"--{name}", value])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reconstruction_size": 17}, "reconstruction_size=17"),
        ({"templates": ["what is it", "<image_placeholder> draw it"]}, "<image_placeholder>"),
        ({"templates": ["what " * 600]}, "512"),
    ],
)
def test_what_the_model_cannot_do_is_said_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        set_up(tiny_backbone(), **settings)


def test_a_family_without_reconstruction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    monkeypatch.setattr(type(backbone), "reconstruction_loss", Backbone.reconstruction_loss)
    with pytest.raises(UserError, match="'janus' has no reconstruction_loss"):
        set_up(backbone)


# ---- what is drawn again -------------------------------------------------------------------------
def batch_of(texts: str) -> Batch:
    """A letter a row: q has an answer, c a caption, - nothing."""
    return Batch(
        Rows(images=torch.rand(len(texts), 3, 16, 16)),
        torch.tensor([letter == "q" for letter in texts]),
        torch.tensor([letter == "c" for letter in texts]),
    )


def test_rows_of_a_picture_alone_come_first() -> None:
    def chosen(texts: str, most: int, every: bool = True) -> list[list[int]]:
        return [
            choose(batch_of(texts), most, every, torch.Generator().manual_seed(seed))
            for seed in range(8)
        ]

    assert all(rows == [1, 3] for rows in chosen("q-c-", 2))
    assert all(len(rows) == 3 and {1, 3} < set(rows) for rows in chosen("q-c-", 3))
    assert {rows[0] for rows in chosen("qqqq", 1)} > {0, 1}  # by lot
    assert all(rows == [2] for rows in chosen("qq-q", 4, every=False))
    assert all(rows == [] for rows in chosen("qqq", 3, every=False))
    mixed = batch_of("q-")  # beside rows of text alone, which have no picture to draw
    mixed.others = Rows(images=torch.rand(1, 3, 16, 16), image_index=[[], [], [0, 0]])
    drawn = [choose(mixed, 2, True, torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert all(rows == [0, 1] for rows in drawn)
    stand_in = batch_of("-")
    stand_in.records.counts = False
    assert choose(stand_in, 1, True, torch.Generator()) == []


def test_the_share_holds_in_batches_of_one_and_after_a_resume() -> None:
    backbone = tiny_backbone().add_lora()

    def drawn(method: RecA, number: int) -> list[int]:
        found = []
        for _ in range(number):
            method.before_step(batch_of("q"), 0)
            (rows,) = method.step_rows()
            found.append(len(rows) if rows.counts else 0)
        return found

    assert drawn(set_up(backbone, share=0.25), 8) == [1, 0, 0, 0, 1, 0, 0, 0]
    first, second = set_up(backbone, share=0.25), set_up(backbone, share=0.25)
    drawn(first, 3)
    second.load_state_dict(first.state_dict())
    assert drawn(second, 3) == [0, 1, 0]
    # A turn that falls on a row with a text waits for the next picture alone.
    alone = set_up(backbone, share=0.5, pictures="alone")
    found = []
    for letter in "-qqq--":
        alone.before_step(batch_of(letter), 0)
        (rows,) = alone.step_rows()
        found.append(len(rows) if rows.counts else 0)
    assert found == [1, 0, 0, 0, 1, 1]
    # Kept turns do not come all at once.
    alone.before_step(batch_of("qqqqqqqq"), 0)
    alone.before_step(batch_of("----"), 0)
    (rows,) = alone.step_rows()
    assert rows.counts and len(rows) == 2
    # A run that goes on with a smaller share waits until it is true of all pictures again.
    less = set_up(backbone, share=0.125)
    less.load_state_dict(alone.state_dict())
    less.before_step(batch_of("--------"), 0)
    (rows,) = less.step_rows()
    assert not rows.counts


def test_the_gradient_into_what_is_read_is_scaled() -> None:
    values = torch.randn(3, 2, requires_grad=True)
    scaled = scale_gradient(values, 0.1)
    assert torch.equal(scaled, values)
    (scaled * torch.arange(2.0)).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 0.1]).expand(3, 2))
    assert not scale_gradient(values.detach(), 0.1).requires_grad


def test_a_scale_that_acts_on_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    set_up(tiny_backbone().add_lora(), understanding_gradient_scale=0.1)
    assert "understanding_gradient_scale=0.1" in caplog.text


def test_a_smaller_size_is_read_and_the_whole_picture_drawn() -> None:
    backbone, batch = tiny_backbone().add_lora(), batch_of("qq")
    features, embeds = backbone.read_images(batch.records.pictures)
    batch.records.embeds, batch.records.features = embeds, features
    rows = {}
    for size in (None, 4):
        method = set_up(backbone, share=1.0, reconstruction_size=size)
        method.before_step(batch, 0)
        (rows[size],) = method.step_rows()
    assert torch.equal(rows[None].embeds, embeds)
    assert not torch.allclose(rows[4].embeds, embeds, atol=1e-3)
    assert torch.equal(rows[4].codes, backbone.encode_images(batch.records.pictures))
    assert all(text in TEMPLATES for text in rows[4].captions)


# ---- in the trainer ------------------------------------------------------------------------------
def test_its_loss_counts_beside_that_of_the_answers(tiny_path: Path, tmp_path: Path) -> None:
    methods = build_methods({"reca": {"weight": 0.25, "share": 0.75}})
    trainer = make_trainer(tiny_path, tmp_path, methods=methods)
    trainer.train()
    for entry in logs(trainer):
        whole = entry["clean_ce"] + 0.25 * entry["reconstruction_loss"]
        assert entry["loss"] == pytest.approx(whole, abs=1e-4)
        assert entry["redrawn_rows"] == 3
        assert entry["reconstruction_loss"] > 1
    assert trainer.methods[0].summary().startswith("RecA: 6 times")


def test_it_resumes_bit_exactly(tiny_path: Path, tmp_path: Path) -> None:
    whole, resumed = whole_and_resumed(
        tiny_path,
        tmp_path,
        Mixed(8),
        lambda: build_methods({"reca": {}}),
        steps=4,
        dropout=0.1,
        per_device_train_batch_size=2,
    )
    states = [trainer.method("reca").state_dict() for trainer in (whole, resumed)]
    assert torch.equal(states[0]["generator"], states[1]["generator"])
    assert states[0]["drawn"] == states[1]["drawn"] == 4


def test_pictures_alone_are_enough_and_other_methods_pass_them_by(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = Mixed(8)
    alone.items = alone.items[1::2]
    only = make_trainer(tiny_path, tmp_path / "reca", alone, methods=["reca"])
    before = lora_weights(only)
    only.train()
    assert all("clean_ce" not in entry and entry["unused_rows"] == 0 for entry in logs(only))
    assert all(entry["redrawn_rows"] == 2 for entry in logs(only))
    assert any(not torch.equal(before[name], w) for name, w in lora_weights(only).items())
    with pytest.raises(UserError, match="list method reca"):
        make_trainer(tiny_path, tmp_path / "none", alone, methods=["sft"])
    plain = make_trainer(tiny_path, tmp_path / "sft", Mixed(8), methods=["sft"])
    plain.train()
    assert sum(entry["unused_rows"] for entry in logs(plain)) == 4
    assert "add reca to methods" in caplog.text


def test_rows_without_text_that_nobody_asked_for_are_a_fault(
    tiny_path: Path, tmp_path: Path
) -> None:
    stray: Any = Mixed(8).items
    with pytest.raises(UserError, match=r"4 neither an answer nor a caption.*reca"):
        make_trainer(tiny_path, tmp_path / "sft", stray, methods=["sft"]).train()
    make_trainer(tiny_path, tmp_path / "reca", stray, methods=["reca"], max_steps=1).train()


# ---- where what is read are the codes ------------------------------------------------------------
def test_on_one_stream_of_tokens_it_cannot_copy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reconstruction_size=.*copy"):
        set_up(tiny_chameleon(), reconstruction_size=tiny_chameleon().facts.image_size)
    trainer = make_trainer(
        shared_tiny_chameleon(), tmp_path, Mixed(4), methods=["reca"], max_steps=1
    )
    trainer.train()
    (entry,) = logs(trainer)
    assert trainer.method("reca").size == trainer.backbone.facts.image_size // 2
    assert entry["same_codes"] < 0.5 and entry["reconstruction_loss"] > 1


# ---- health --------------------------------------------------------------------------------------
CHANCE = 4.1  # nats a code; a guess among the 64 of the tiny model has 4.16


@pytest.fixture(scope="module")
def idle() -> RecA:
    return set_up(tiny_backbone())


def entries(count: int = 6, **figures: Any) -> list[dict[str, Any]]:
    """Logs in which a figure given as a list moves evenly from its first value to its last."""
    lines = []
    for number in range(count):
        line: dict[str, Any] = {"loss": 1.0, "learning_rate": 1e-3, "grad_norm": 1.0}
        for name, value in figures.items():
            first, last = value if isinstance(value, list) else (value, value)
            line[name] = first + (last - first) * number / (count - 1)
        lines.append(line)
    return lines


@pytest.mark.parametrize(
    ("figures", "symptom"),
    [
        ({"redrawn_rows": 2, "reconstruction_loss": [3.0, 2.5]}, None),
        ({"redrawn_rows": 2, "reconstruction_loss": [3.0, 2.5], "same_codes": 0.4}, None),
        ({"redrawn_rows": 2, "reconstruction_loss": [CHANCE, 2.5]}, "redrawing from chance"),
        ({"redrawn_rows": 0}, "nothing redrawn"),
        ({"redrawn_rows": 2, "reconstruction_loss": 2.0, "same_codes": 0.7}, "pictures copied"),
        ({"redrawn_rows": 2, "reconstruction_loss": 0.01}, "pictures copied"),
        ({"redrawn_rows": 2, "reconstruction_loss": [2.0, 3.0]}, "drawing unlearned"),
        ({"redrawn_rows": 2, "learning_rate": 0}, "U does not learn"),
    ],
)
def test_it_says_what_is_wrong(idle: RecA, figures: dict[str, Any], symptom: str | None) -> None:
    found = [finding.symptom for finding in idle.health(entries(**figures))]
    assert found == ([symptom] if symptom else [])
