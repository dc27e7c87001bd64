"""The seed decides LoRA's first weights, and nothing that the process drew before does."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

from tests.training.helpers import LORA, Records, lora_weights, make_config
from unigame.backbones import load_backbone
from unigame.training.trainer import UniGameTrainer


def first_weights(
    model: Path, folder: Path, *, drawn_before: int, seed: int, given: str = "backbone"
) -> dict[str, torch.Tensor]:
    torch.manual_seed(drawn_before)
    trainer = UniGameTrainer(
        model=load_backbone(model, device="cpu") if given == "backbone" else str(model),
        args=make_config(folder, seed=seed, data_seed=0),
        train_dataset=Records(),
        peft_config=peft.LoraConfig(**LORA),
    )
    return lora_weights(trainer)


@pytest.mark.parametrize("given", ["backbone", "path"])
def test_one_seed_is_one_lora_whatever_was_drawn_before(
    tiny_path: Path, tmp_path: Path, given: str
) -> None:
    one, other = (
        first_weights(tiny_path, tmp_path, drawn_before=drawn, seed=5, given=given)
        for drawn in (1, 2)
    )
    assert one.keys() == other.keys() and one
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_another_seed_is_another_lora(tiny_path: Path, tmp_path: Path) -> None:
    one, other = (first_weights(tiny_path, tmp_path, drawn_before=1, seed=seed) for seed in (5, 6))
    assert any(not torch.equal(weight, other[name]) for name, weight in one.items())


def test_the_caller_of_the_trainer_keeps_its_own_lora(tiny_path: Path, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_path, device="cpu").add_lora(peft.LoraConfig(**LORA))
    before = {n: p.detach().clone() for n, p in backbone.named_parameters() if p.requires_grad}
    trainer = UniGameTrainer(backbone, make_config(tmp_path, seed=9), Records())
    assert before and all(torch.equal(before[n], w) for n, w in lora_weights(trainer).items())
