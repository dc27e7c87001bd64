"""What all families share as objects: modes, and embeddings put into a row."""

from __future__ import annotations

import torch

from tests.tiny import shared_tiny_janus
from unigame.backbones import load_backbone
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
