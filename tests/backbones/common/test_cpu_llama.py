"""Single steps through a Llama on a CPU: the class's own numbers, and where it does not apply."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel

from tests.tiny import stir_lora, tiny_backbone
from unigame.backbones.common.fast.cpu_llama import CpuLlama, supports
from unigame.backbones.common.layout import PaddedTokens

HIDDEN = 32


def llama(**settings) -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=2,
        **{"num_attention_heads": 4, "num_key_value_heads": 4, **settings},
    )
    model = LlamaModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Norms that matter: a weight of one would hide that it was left out.
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model


def prompts() -> tuple[torch.Tensor, PaddedTokens]:
    mask_BL = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    positions_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
    embeds_BLH = torch.randn(3, 5, HIDDEN, generator=torch.Generator().manual_seed(1))
    return embeds_BLH, PaddedTokens(torch.zeros_like(mask_BL), mask_BL, positions_BL)


@torch.no_grad()
def by_the_class(model: LlamaModel, steps_SB1H: torch.Tensor) -> torch.Tensor:
    """Newest hidden states (S + 1, B, H), the plain way."""
    embeds_BLH, tokens = prompts()
    cache, mask, position = DynamicCache(config=model.config), tokens.mask_BL, tokens.positions_BL
    found = []
    for embeds in (embeds_BLH, *steps_SB1H):
        states = model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        found.append(states[:, -1])
        mask = torch.cat([mask, mask.new_ones(3, 1)], dim=-1)
        position = position[:, -1:] + 1
    return torch.stack(found)


@torch.no_grad()
def by_steps(model: LlamaModel, steps_SB1H: torch.Tensor) -> torch.Tensor:
    embeds_BLH, tokens = prompts()
    stepping = CpuLlama(model, tokens, room=len(steps_SB1H))
    return torch.stack([stepping.start(embeds_BLH), *map(stepping.step, steps_SB1H)])


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_key_value_heads": 2}, {"num_key_value_heads": 1}, {"head_dim": 12}],
    ids=["plain", "two groups", "one group", "wide heads"],
)
def test_steps_are_those_of_the_class(settings):
    model = llama(**settings)
    assert supports(model)
    steps = torch.randn(6, 3, 1, HIDDEN, generator=torch.Generator().manual_seed(2))
    expected = by_the_class(model, steps)
    assert torch.allclose(by_steps(model, steps), expected, atol=1e-5)
    assert not torch.allclose(expected[0], expected[-1], atol=0.1), "something happened"


def test_lora_is_multiplied_in_and_the_model_left_as_it_was():
    backbone = tiny_backbone().add_lora(peft.LoraConfig(r=4, lora_dropout=0.5))
    stir_lora(backbone, scale=0.3)
    model = backbone.eval().language_model
    before = {name: weight.clone() for name, weight in backbone.named_parameters()}
    steps = torch.randn(3, 3, 1, HIDDEN, generator=torch.Generator().manual_seed(2))
    adapted, expected = by_steps(model, steps), by_the_class(model, steps)
    assert torch.allclose(adapted, expected, atol=1e-5)
    assert all(torch.equal(w, before[name]) for name, w in backbone.named_parameters())
    plain = by_steps(tiny_backbone().eval().language_model, steps)
    assert not torch.allclose(adapted, plain, atol=1e-2)


def test_other_models_are_left_to_the_class():
    assert not supports(llama().to(torch.bfloat16))
    assert not supports(llama(attention_bias=True))
    assert not supports(llama(hidden_act="gelu"))
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert not supports(llama(rope_parameters=scaled))
    assert not supports(torch.nn.Linear(2, 2))
    dora = tiny_backbone().add_lora(peft.LoraConfig(r=4, use_dora=True))
    assert not supports(dora.language_model)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("adapted", [False, True])
def test_drawings_are_those_of_the_plain_way(guidance: float, adapted: bool, monkeypatch):
    backbone = tiny_backbone()
    if adapted:
        stir_lora(backbone.add_lora(), scale=0.3)
    prompts = ["a red circle", "two small green squares left of a blue cross"]
    settings = {"guidance_scale": guidance, "seeds": [1, 2]}
    lean = backbone.generate_codes(prompts, **settings)
    backbone.lean_drawing = False
    monkeypatch.setattr(CpuLlama, "step", lambda *_: pytest.fail("switched off"))
    assert torch.equal(lean, backbone.generate_codes(prompts, **settings))


def test_a_class_of_its_own_reads_the_prompt_of_several_drawings_once_too(monkeypatch):
    backbone = tiny_backbone()
    prompts = ["a red circle"] * 3 + ["two small green squares left of a blue cross"]
    settings = {"guidance_scale": 5.0, "seeds": [1, 2, 3, 4]}
    monkeypatch.setattr("unigame.backbones.common.fast.cpu_llama.supports", lambda _: False)
    rows: list[int] = []
    hook = backbone.language_model.register_forward_pre_hook(
        lambda _, __, given: rows.append(len(given["inputs_embeds"])), with_kwargs=True
    )
    codes = backbone.generate_codes(prompts, **settings)
    assert rows[0] == 4, "two prompts, and their unconditional twins"
    assert set(rows[1:]) == {8}
    hook.remove()
    backbone.lean_drawing = False
    assert torch.equal(codes, backbone.generate_codes(prompts, **settings))
