"""Samples without a caption are redrawn by the model's own description, and never silently."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import random_images, shared_tiny_janus, stir_lora, tiny_backbone
from tests.training.helpers import Records, game_of, lora_weights, make_trainer
from unigame import SyntheticDataset, load_backbone
from unigame.backbones.base import CAPTION_QUESTION
from unigame.errors import UserError
from unigame.methods.captions import MadeCaptions
from unigame.methods.selfplay import SelfPlay, SelfPlaySettings
from unigame.training.trainer import UniGameTrainer


class Watched(UniGameTrainer):
    """Keeps the prompts that pictures were redrawn by, and how many were described."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prompts: list[str] = []
        self.described = 0
        answer = self.backbone.answer

        def counting(images: Tensor, questions: Sequence[str], **more: Any) -> list[str]:
            self.described += questions.count(CAPTION_QUESTION)  # type: ignore[attr-defined]
            return answer(images, questions, **more)

        self.backbone.answer = counting  # type: ignore[method-assign, assignment]

        for method in self.methods:
            if isinstance(method, SelfPlay):
                method.challenged = self._noted(method.challenged)  # type: ignore[method-assign]

    def _noted(self, challenged: Any) -> Any:
        def noted(batch: Any, *turn: int) -> Any:
            rows = challenged(batch, *turn)
            self.prompts += rows.prompts
            return rows

        return noted


def watched(folder: Path, data: Any = None, **settings: Any) -> Watched:
    settings = {"missing_captions": "model", **settings}
    trainer = make_trainer(
        shared_tiny_janus(), folder, data or Records(8), kind=Watched, **settings
    )
    assert isinstance(trainer, Watched)
    return trainer


def test_the_question_is_not_the_prompt_where_there_is_no_caption(tmp_path: Path) -> None:
    trainer = watched(tmp_path, max_steps=4)
    trainer.train()
    assert "what colour is it" not in trainer.prompts
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {str(i) for i in range(8)}
    assert {line["caption"] for line in lines} == set(trainer.prompts)
    assert trainer.described == 8  # once each, over two epochs


def test_the_bundled_model_describes_what_is_there(tmp_path: Path) -> None:
    backbone = load_backbone("janus-nano", device="cpu")
    rows = [SyntheticDataset("test", size=24, seed=3)[i] for i in range(0, 24, 6)]
    images = backbone.preprocess([row["image"] for row in rows])
    made = MadeCaptions(backbone, tmp_path)(images, [row["id"] for row in rows])
    assert [text.replace(" ,", ",") for text in made] == [row["caption"] for row in rows]


def test_describing_is_the_default() -> None:
    assert SelfPlaySettings().missing_captions == "model"


def test_given_captions_are_used_and_nothing_is_made(tmp_path: Path) -> None:
    trainer = watched(tmp_path, Records(8, captions=True))
    trainer.train()
    assert all(prompt.endswith("circle") for prompt in trainer.prompts)
    assert trainer.described == 0 and not (tmp_path / "captions.jsonl").exists()


@pytest.mark.parametrize("settings", [{"methods": ["sft"]}, {"perturb_space": "tokens"}])
def test_without_a_redrawing_nothing_is_described(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = watched(tmp_path, **settings)
    trainer.train()
    assert trainer.described == 0 and not (tmp_path / "captions.jsonl").exists()


def test_questions_as_prompts_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = watched(tmp_path, Records(8).items, missing_captions="question")
    trainer.train()
    assert set(trainer.prompts) == {"what colour is it"} and trainer.described == 0
    assert "missing_captions" in caplog.text and "8 of 8" in caplog.text


@pytest.mark.parametrize("kind", [list, None])
def test_missing_captions_can_be_refused(kind: Any, tmp_path: Path) -> None:
    data = Records(8).items if kind else Records(8)
    with pytest.raises(UserError, match="missing_captions"):
        watched(tmp_path, data, missing_captions="error").train()
    with pytest.raises(UserError, match="missing_captions"):
        watched(tmp_path, missing_captions="guess")


def test_descriptions_are_those_of_the_base_model_at_any_step(tmp_path: Path) -> None:
    backbone = tiny_backbone().add_lora()
    images, ids = random_images(3), ["a", "b", "c"]
    before = MadeCaptions(backbone, tmp_path / "a")(images, ids)
    stir_lora(backbone, scale=1.0)
    assert backbone.caption(images) != before
    assert MadeCaptions(backbone, tmp_path / "b")(images, ids) == before


def test_what_was_made_is_found_again_by_any_process_and_after_a_kill(tmp_path: Path) -> None:
    backbone, images = tiny_backbone(), random_images(4)
    first = MadeCaptions(backbone, tmp_path, rank=1)
    texts = first(images[:3], ["a", "b", "c"])
    file = tmp_path / "captions_1.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-20])  # killed while it wrote the last line
    again = MadeCaptions(backbone, tmp_path, rank=1)
    assert again(images, ["a", "b", "c", "d"])[:3] == texts and again.made == 2
    third = MadeCaptions(backbone, tmp_path)
    third(images, ["a", "b", "c", "d"])
    assert third.made == 0


def test_another_model_describes_anew(tmp_path: Path) -> None:
    images = random_images(2)
    MadeCaptions(tiny_backbone(), tmp_path)(images, ["a", "b"])
    other = tiny_backbone()
    with torch.no_grad():
        other.base.get_input_embeddings().weight.mul_(-1)
    again = MadeCaptions(other, tmp_path)
    again(images, ["a", "b"])
    assert again.made == 2


def test_a_description_that_cannot_be_a_prompt_gives_way_to_the_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = watched(tmp_path, max_steps=1)
    monkeypatch.setattr(
        trainer.backbone, "caption", lambda images: ["", "a <|User|>", "red", "blue"]
    )
    trainer.train()
    assert trainer.prompts == ["what colour is it", "what colour is it", "red", "blue"]
    assert game_of(trainer).captions.unusable == 2
    assert "no usable description" in caplog.text


def test_a_resumed_run_draws_by_the_same_captions(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = watched(tmp_path / "whole", **settings)
    whole.train()
    file = tmp_path / "whole" / "captions.jsonl"
    mended = [{**json.loads(line), "caption": "red circle"} for line in file.open()]
    resumed = watched(tmp_path / "resumed", **settings)
    resumed.train(str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.prompts == whole.prompts[8:] and resumed.described == 0
    for name, weight in lora_weights(whole).items():
        assert torch.equal(weight, lora_weights(resumed)[name]), name
    file.write_text("\n".join(json.dumps(entry) for entry in mended))
    by_hand = watched(tmp_path / "hand", **settings)
    by_hand.train(str(tmp_path / "whole" / "checkpoint-2"))
    assert set(by_hand.prompts) == {"red circle"}
