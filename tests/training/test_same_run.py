"""A checkpoint is resumed by the run that wrote it, and by another one only where that is asked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import peft
import pytest

from tests.tiny import make_tiny_janus
from tests.training.helpers import LORA, Records, make_config, make_game, make_trainer
from unigame.backbones import load_backbone
from unigame.data.mixture import Mixture
from unigame.errors import UserError
from unigame.methods.verify import Verify
from unigame.training.trainer import UniGameTrainer

DRAWN: dict[str, Any] = {"guidance_scale": 1.0, "drawings": 1, "captions": 1}
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def saved(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_trainer(tiny_path, folder, max_steps=1, **SAVING).train()
    return folder / "checkpoint-1"


def refused(trainer: UniGameTrainer, checkpoint: Path) -> str:
    with pytest.raises(UserError, match="another run") as caught:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 0
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_order_of_methods_is_another_run(tiny_path: Path, tmp_path: Path) -> None:
    """One method may take what those before it offer."""
    more = {"generation_weight": 1.0, "data": Records(6, captions=True), "max_steps": 1}
    listed = [Verify(every=5, verifier="none", **DRAWN), "sft"]
    make_trainer(tiny_path, tmp_path, methods=listed, **more, **SAVING).train()
    again = [Verify(every=5, verifier="none", **DRAWN), "sft"][::-1]
    said = refused(
        make_trainer(tiny_path, tmp_path, methods=again, **{**more, "max_steps": 2}, **SAVING),
        tmp_path / "checkpoint-1",
    )
    assert "methods: verify, sft there, sft, verify here" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 4),
        ("learning_rate", 2e-2),
        ("beta", 0.25),
        ("buffer_capacity", 7),
        ("buffer", False),
        ("challenge_every", 3),
        ("hard_quantile", 0.5),
        ("perturber_learning_rate", 1e-4),
        ("per_device_train_batch_size", 2),
        ("gradient_accumulation_steps", 2),
        ("lr_scheduler_type", "constant"),
        ("weight_decay", 0.1),
        ("max_grad_norm", 0.5),
        ("similarity", "none"),
        ("perturb_space", "tokens"),
        ("warmup_steps", 3),
    ],
)
def test_another_setting_is_named_with_both_values(
    saved: Path, tiny_path: Path, tmp_path: Path, name: str, value: Any
) -> None:
    trainer = make_trainer(tiny_path, tmp_path, max_steps=2, **{name: value})
    said = refused(trainer, saved)
    here, there = (
        {**make_config(tmp_path, **chosen).to_dict(), **make_game(**chosen).as_dict()}[name]
        for chosen in ({name: value}, {})
    )
    assert f"{name}: {there} there, {here} here" in said


@pytest.mark.parametrize("rows", [9, 8])
def test_other_rows_are_another_run(
    saved: Path, tiny_path: Path, tmp_path: Path, rows: int
) -> None:
    data = Records(rows)
    data.items[0]["answer"] = "purple"
    assert "data." in refused(make_trainer(tiny_path, tmp_path, data, max_steps=2), saved)


def test_another_lora_is_another_run(saved: Path, tiny_path: Path, tmp_path: Path) -> None:
    trainer = UniGameTrainer(
        load_backbone(tiny_path, device="cpu"),
        make_config(tmp_path, max_steps=2),
        Records(),
        peft_config=peft.LoraConfig(**{**LORA, "lora_alpha": 64}),
        methods=[make_game()],
    )
    assert "lora.lora_alpha: 8 there, 64 here" in refused(trainer, saved)


def test_another_base_model_of_equal_shapes_is_another_run(saved: Path, tmp_path: Path) -> None:
    other = make_tiny_janus(tmp_path / "janus", seed=99)
    assert "model.weights" in refused(make_trainer(other, tmp_path / "run", max_steps=2), saved)


def test_asked_for_it_goes_on_and_says_what_differs(
    saved: Path, tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tiny_path, tmp_path, max_steps=2, beta=0.1, resume_anyway=True)
    trainer.train(resume_from_checkpoint=str(saved))
    assert trainer.state.global_step == 2
    assert "beta: 0.5 there, 0.1 here" in caplog.text


def test_what_changes_nothing_that_is_learned_may_differ(
    saved: Path, tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    free = {
        "logging_steps": 2,
        "save_steps": 5,
        "save_total_limit": 3,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "challenge_micro_batch": 2,
        "understanding_micro_batch": 2,
        "run_name": "another",
        "eval_strategy": "no",
    }
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(tiny_path, tmp_path, max_steps=3, **free)
        trainer.train(resume_from_checkpoint=str(saved))
    assert trainer.state.global_step == 3 and "there" not in caplog.text


def test_a_mixture_in_its_second_epoch_is_still_the_same_data(
    tiny_path: Path, tmp_path: Path
) -> None:
    data = Mixture([Records(9), Records(3)], weights=[3, 1], seed=1, size=4)
    settings = {"methods": ["sft"], "per_device_train_batch_size": 2, **SAVING}
    make_trainer(tiny_path, tmp_path, data, max_steps=3, **settings).train()
    assert data.epoch == 1
    again = make_trainer(tiny_path, tmp_path, data, max_steps=4, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
