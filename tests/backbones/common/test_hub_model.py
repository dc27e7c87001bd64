"""What all families share as objects: modes, embeddings put into a row, how weights are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import JanusForConditionalGeneration

from tests.tiny import random_images, shared_tiny_janus
from tests.tiny_chameleon import shared_tiny_chameleon
from tests.tiny_emu3 import shared_tiny_emu3
from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.backbones.common.autoregressive import AutoregressiveBackbone
from unigame.backbones.common.hub_model import HubModel
from unigame.backbones.common.understanding import ReadingBackbone


def test_only_the_language_model_takes_the_mode(backbone: HubModel) -> None:
    backbone.add_lora().train()
    language = {id(module) for module in backbone.language_model.modules()}
    training = {name: module for name, module in backbone.named_modules() if module.training}
    assert training.pop("") is backbone
    assert any(name.endswith("lora_dropout.default") for name in training)
    assert all(id(module) in language for module in training.values())
    for name in backbone.frozen_parts:
        part = (
            backbone.base.lm_head if name == "lm_head" else backbone.base.model.get_submodule(name)
        )
        assert not any(module.training for module in part.modules())
    assert not any(module.training for module in backbone.eval().modules())


def test_what_is_put_into_a_row_keeps_its_precision() -> None:
    backbone = load_backbone(shared_tiny_janus(), dtype="bfloat16", device="cpu")
    assert isinstance(backbone, ReadingBackbone)
    row = backbone.layout.question_ids("what is it")
    tokens = backbone.layout.pad([row], "right", backbone.device)
    count = row.count(backbone.layout.image_token_id)
    embeds_BNH = torch.randn(1, count, backbone.facts.hidden_size) + 1e-4
    placed_BLH = backbone.embed_rows(tokens, embeds_BNH)
    assert placed_BLH.dtype == torch.float32
    assert torch.equal(placed_BLH[tokens.ids_BL == backbone.layout.image_token_id], embeds_BNH[0])


TOKENIZED = {
    "janus": shared_tiny_janus,
    "emu3": shared_tiny_emu3,
    "chameleon": shared_tiny_chameleon,
}


def tokenizer_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    assert isinstance(backbone, AutoregressiveBackbone)
    return backbone.base.model.vqmodel.state_dict()


@pytest.mark.parametrize("family", TOKENIZED)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_float32_checkpoint_has_the_same_codes_in_bfloat16(
    family: str, sharded: bool, tmp_path: Path
) -> None:
    folder = TOKENIZED[family]()
    whole = load_backbone(folder, device="cpu")
    if sharded:
        shutil.copytree(folder, tmp_path / "model")
        folder = tmp_path / "model"
        (folder / "model.safetensors").unlink()
        whole.base.save_pretrained(folder, max_shard_size="200KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    half = load_backbone(folder, dtype="bfloat16", device="cpu")
    assert half.dtype == half.base.lm_head.weight.dtype == torch.bfloat16
    expected = tokenizer_of(whole)
    assert all(torch.equal(weight, expected[n]) for n, weight in tokenizer_of(half).items())
    images = random_images(16, whole.facts.image_size)
    assert torch.equal(half.encode_images(images), whole.encode_images(images))


@pytest.mark.parametrize("family", TOKENIZED)
def test_a_float16_checkpoint_becomes_bfloat16_but_for_its_tokenizer(
    family: str, tmp_path: Path
) -> None:
    whole = load_backbone(TOKENIZED[family](), device="cpu")
    shutil.copytree(TOKENIZED[family](), tmp_path / "model")
    whole.base.to(torch.float16).save_pretrained(tmp_path / "model")
    half = load_backbone(tmp_path / "model", dtype="auto", device="cpu")
    expected = tokenizer_of(whole)
    for name, weight in tokenizer_of(half).items():
        wanted = expected[name]
        assert torch.equal(weight, wanted.float() if wanted.is_floating_point() else wanted)
    others = {p.dtype for n, p in half.named_parameters() if ".vqmodel." not in n}
    assert others == {torch.bfloat16}


def test_loading_leaves_the_classes_of_transformers_alone(tmp_path: Path) -> None:
    half = load_backbone(shared_tiny_janus(), dtype="bfloat16", device="cpu")
    assert isinstance(half.base, JanusForConditionalGeneration)
    half.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == ["JanusForConditionalGeneration"]
    plain = JanusForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in plain.parameters()} == {torch.bfloat16}
