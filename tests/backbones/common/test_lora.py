"""Where LoRA sits, and which adapters are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import (
    make_tiny_janus,
    random_images,
    shared_tiny_janus,
    stir_lora,
    tiny_backbone,
)
from unigame.backbones import load_backbone
from unigame.backbones.common import lora
from unigame.backbones.common.hub_model import LORA_TARGETS
from unigame.backbones.common.lora_settings import STARTS, check_lora
from unigame.backbones.janus.model import JanusBackbone
from unigame.errors import UserError


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    backbone = tiny_backbone().add_lora()
    stir_lora(backbone)
    backbone.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def adapted_layers(backbone: JanusBackbone) -> set[str]:
    return {
        name.split("model.language_model.")[1].split(".lora_")[0]
        for name, p in backbone.named_parameters()
        if p.requires_grad
    }


def test_default_is_the_papers_and_covers_every_linear_layer_of_the_lm() -> None:
    backbone = tiny_backbone().add_lora()
    config = backbone.model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.05)
    linear = {
        name.removesuffix(".base_layer")
        for name, module in backbone.janus.model.language_model.named_modules()
        if type(module) is torch.nn.Linear and "lora_" not in name
    }
    assert adapted_layers(backbone) == linear
    assert len(linear) == 2 * len(LORA_TARGETS)


@pytest.mark.parametrize("wanted", [["q_proj", "v_proj"], "all-linear"])
def test_named_targets_stay_out_of_the_vision_tower(wanted: list[str] | str) -> None:
    backbone = tiny_backbone().add_lora(peft.LoraConfig(r=4, target_modules=wanted))
    per_layer = 2 if wanted != "all-linear" else len(LORA_TARGETS)
    assert len(adapted_layers(backbone)) == 2 * per_layer
    assert not any("lora_" in n for n, _ in backbone.janus.model.vision_model.named_parameters())


def test_impossible_targets_are_named() -> None:
    with pytest.raises(UserError, match="'fc1' is no linear layer of the language model; choose"):
        tiny_backbone().add_lora(peft.LoraConfig(target_modules=["fc1"]))
    with pytest.raises(UserError, match="also matches 'base_model.model.model.vision_model"):
        tiny_backbone().add_lora(peft.LoraConfig(target_modules=".*q_proj"))
    with pytest.raises(UserError, match="does not fit the model"):
        tiny_backbone().add_lora(peft.LoraConfig(target_modules=".*nothing"))


@pytest.mark.parametrize("chosen", [[1], 1])
def test_only_the_named_layers_learn(chosen: list[int] | int, tmp_path: Path) -> None:
    backbone = tiny_backbone().add_lora(peft.LoraConfig(r=4, layers_to_transform=chosen))
    assert {name.split(".")[1] for name in adapted_layers(backbone)} == {"1"}
    backbone.save_pretrained(tmp_path)
    tiny_backbone().load_adapter(tmp_path)  # PEFT reads its settings again


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="does not fit the model"):
        tiny_backbone().add_lora(peft.LoraConfig(layers_to_transform=[999]))


OFF_IS_NOT_BASE = [
    ("init_lora_weights", "olora"),
    ("init_lora_weights", "OLoRA"),
    ("init_lora_weights", "pissa"),
    ("init_lora_weights", "pissa_niter_4"),
    ("init_lora_weights", "corda"),
    ("init_lora_weights", "lora_ga"),
    ("init_lora_weights", "loftq"),
    ("bias", "all"),
    ("bias", "lora_only"),
    ("modules_to_save", ["aligner"]),
    ("layer_replication", [[0, 2], [1, 2]]),
]
"""Settings with which PEFT rewrites or trains the base model's own weights."""


@pytest.mark.parametrize(("name", "value"), OFF_IS_NOT_BASE)
def test_what_would_change_the_base_model_is_refused(name: str, value: Any, adapter: Path) -> None:
    backbone, config = tiny_backbone(), peft.LoraConfig(r=4)
    setattr(config, name, value)  # peft asks some of them for a second setting
    with pytest.raises(UserError, match=f"lora.{name}=.*no longer the base"):
        backbone.add_lora(config)
    config.target_modules = r".*\.language_model\..*q_proj"
    with pytest.raises(UserError, match=f"lora.{name}=.*no longer the base"):
        lora.wrap(backbone.model, config, "language_model")
    with pytest.raises(UserError, match=f"lora.{name}=.*no longer the base"):
        check_lora({name: value})
    assert not backbone.trainable_parameters() and not isinstance(backbone.model, peft.PeftModel)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(UserError, match=f"adapter_config.json': {name}=.*not loaded") as caught:
        backbone.load_adapter(adapter)
    assert "\n" not in str(caught.value) and not isinstance(backbone.model, peft.PeftModel)


@pytest.mark.parametrize("start", [True, *STARTS])
def test_without_lora_every_start_is_the_base_model(start: bool | str) -> None:
    config = peft.LoraConfig(**check_lora({"r": 4, "init_lora_weights": start}))
    backbone, base = tiny_backbone().add_lora(config), tiny_backbone()
    asked = (random_images(2), ["what colour is it"] * 2, ["red", "blue"])
    with backbone.lora_disabled():
        assert torch.equal(backbone.answer_loss(*asked), base.answer_loss(*asked))
    own = dict(base.named_parameters())
    for name, weight in backbone.named_parameters():
        if "lora_" not in name:
            plain = name.replace("base_model.model.", "").replace(".base_layer", "")
            assert torch.equal(weight, own[plain]) and not weight.requires_grad


def test_an_adapter_of_a_start_that_leaves_the_base_alone_is_loaded(adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    expected = tiny_backbone()
    expected.load_adapter(adapter)
    settings = {"init_lora_weights": "orthogonal", "bias": "none", "modules_to_save": []}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    backbone = tiny_backbone()
    backbone.load_adapter(adapter)
    pairs = zip(backbone.trainable_parameters(), expected.trainable_parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_nothing_learns_outside_the_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "check_lora_config", lambda config: None)  # as if it knew no biases
    backbone = tiny_backbone()
    with pytest.raises(UserError, match="would also train 'base_model.model.model.vision_model"):
        backbone.add_lora(peft.LoraConfig(r=4, bias="all"))
    assert not backbone.trainable_parameters() and not isinstance(backbone.model, peft.PeftModel)
    assert not any("lora_" in name for name, _ in backbone.named_parameters())


def test_the_users_settings_are_not_changed() -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj"])
    tiny_backbone().add_lora(config)
    assert config.target_modules == {"q_proj"}


def test_a_second_adapter_is_refused() -> None:
    with pytest.raises(UserError, match="has a LoRA adapter already"):
        tiny_backbone().add_lora().add_lora()


def test_the_adapter_is_in_peft_format(adapter: Path) -> None:
    base = tiny_backbone()
    plain = peft.PeftModel.from_pretrained(base.janus, str(adapter))
    ours = load_backbone(shared_tiny_janus(), adapter=adapter, device="cpu")
    weights = {n: p for n, p in plain.named_parameters() if "lora_" in n}
    for name, p in ours.model.named_parameters():
        if "lora_" in name:
            assert torch.equal(p, weights[name])


def damaged(adapter: Path, kind: str) -> None:
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    first = sorted(weights)[0]
    if kind == "empty":
        weights = {}
    elif kind == "missing":
        del weights[first]
    elif kind == "foreign":
        weights["base_model.model.other.lora_A.weight"] = weights.pop(first)
        weights[first] = torch.zeros(1)
    elif kind == "shape":
        weights[first] = torch.zeros(3, 5)
    save_file(weights, file)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "holds no weights"),
        ("missing", r"lacks .*\(1 missing, 0 unknown\)"),
        ("foreign", r"unknown 'base_model.model.other.*\(0 missing, 1 unknown\)"),
        ("shape", r"of shape \(3, 5\), the model expects"),
    ],
)
def test_a_foreign_adapter_is_refused_and_leaves_the_model_as_it_was(
    adapter: Path, kind: str, message: str
) -> None:
    damaged(adapter, kind)
    backbone = tiny_backbone()
    names = set(backbone.state_dict())
    with pytest.raises(UserError, match=message):
        backbone.load_adapter(adapter)
    assert set(backbone.state_dict()) == names


def test_an_adapter_of_a_wider_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    wider = load_backbone(make_tiny_janus(tmp_path / "wider", hidden=64), device="cpu")
    with pytest.raises(UserError, match="does not fit .*wider.*; load it with its own base"):
        wider.load_adapter(adapter)


def test_another_kind_of_adapter_is_refused(adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(UserError, match="type 'IA3'; only LORA"):
        tiny_backbone().load_adapter(adapter)
    file.write_text("{}")
    with pytest.raises(UserError, match="no PEFT configuration"):
        tiny_backbone().load_adapter(adapter)


def test_an_adapter_loads_over_one_of_the_same_shape(adapter: Path) -> None:
    backbone = tiny_backbone().add_lora()
    before = [p.clone() for p in backbone.trainable_parameters()]
    backbone.load_adapter(adapter)
    after = backbone.trainable_parameters()
    assert len(before) == len(after)
    assert all(not torch.equal(b, a) for b, a in zip(before, after, strict=True))


def test_merged_lora_answers_alike_and_leaves_no_trace() -> None:
    backbone = tiny_backbone().add_lora()
    stir_lora(backbone, scale=0.3)
    images, asked = torch.rand(2, 3, 16, 16), (["what colour is it"] * 2, ["red", "blue"])
    base = tiny_backbone().answer_loss(images, *asked)
    expected = backbone.answer_loss(images, *asked)
    weights = {name: weight.clone() for name, weight in backbone.named_parameters()}
    with lora.merged(backbone):
        found = backbone.answer_loss(images, *asked)
        backbone.train()  # dropout of LoRA takes no part either
        assert torch.equal(backbone.answer_loss(images, *asked), found)
        backbone.eval()
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, base, atol=1e-3)
    after = dict(backbone.named_parameters())
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    assert torch.equal(backbone.answer_loss(images, *asked), expected)


def test_weights_that_would_be_rounded_are_not_merged() -> None:
    backbone = tiny_backbone("bfloat16").add_lora()
    layer = backbone.language_model.layers[0].mlp.down_proj
    own = layer.base_layer.weight
    with lora.merged(backbone):
        assert layer.base_layer.weight is own and not layer.disable_adapters


def test_an_error_inside_brings_the_own_weights_back() -> None:
    backbone = tiny_backbone().add_lora()
    layer = backbone.language_model.layers[0].mlp.down_proj
    own = layer.base_layer.weight
    with pytest.raises(RuntimeError, match="stop"), lora.merged(backbone):
        assert layer.base_layer.weight is not own
        raise RuntimeError("stop")
    assert layer.base_layer.weight is own and not layer.disable_adapters


def test_no_memory_for_the_sums_brings_the_own_weights_back(monkeypatch) -> None:
    backbone = tiny_backbone().add_lora()
    layers = [backbone.language_model.layers[i].mlp.down_proj for i in range(2)]
    own, one_sum = [layer.base_layer.weight for layer in layers], lora._sum

    def full(layer: torch.nn.Module) -> torch.Tensor:
        if layer is layers[1]:
            raise torch.OutOfMemoryError("no memory")
        return one_sum(layer)

    monkeypatch.setattr(lora, "_sum", full)
    with pytest.raises(torch.OutOfMemoryError), lora.merged(backbone):
        pass
    for layer, weight in zip(layers, own, strict=True):
        assert layer.base_layer.weight is weight and not layer.disable_adapters
