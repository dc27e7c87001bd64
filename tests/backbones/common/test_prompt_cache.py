"""Equal prompts go through the language model once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import tiny_backbone
from unigame.backbones.common.fast.prompt_cache import distinct_rows, read_prompts

PROMPTS = ["a red circle", "two small green squares", "a red circle", "a red cross", "a red circle"]


def test_rows_are_told_apart_by_tokens_and_padding():
    backbone = tiny_backbone()
    tokens = backbone.drawing_rows(backbone.prompt_tokens(PROMPTS), guided=True)
    first_U, source_B = distinct_rows(tokens)
    # Three prompts, and behind them the unconditional twins of two lengths.
    assert first_U.tolist() == [0, 1, 3, 5, 6]
    assert source_B.tolist() == [0, 1, 0, 2, 0, 3, 4, 3, 3, 3]


def test_states_and_cache_are_those_of_all_rows():
    backbone = tiny_backbone().eval()
    tokens = backbone.drawing_rows(backbone.prompt_tokens(PROMPTS), guided=True)
    embeds_BLH = backbone.base.get_input_embeddings()(tokens.ids_BL)
    rows: list[int] = []

    def note(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        rows.append(len(inputs["inputs_embeds"]))

    model = backbone.language_model
    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        hidden_BH, cache = read_prompts(model, embeds_BLH, tokens)
        plain = model(
            inputs_embeds=embeds_BLH,
            attention_mask=tokens.mask_BL,
            position_ids=tokens.positions,
            use_cache=True,
        )
    hook.remove()
    assert rows == [5, 10]
    assert torch.allclose(hidden_BH, plain.last_hidden_state[:, -1], atol=1e-5)
    for layer, expected in zip(cache.layers, plain.past_key_values.layers, strict=True):
        assert torch.allclose(layer.keys, expected.keys, atol=1e-5)
        assert torch.allclose(layer.values, expected.values, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_drawings_of_one_prompt_are_those_drawn_alone(guidance):
    backbone = tiny_backbone()
    seeds = list(range(len(PROMPTS)))
    together = backbone.generate_codes(PROMPTS, guidance_scale=guidance, seeds=seeds)
    for row, (prompt, seed) in enumerate(zip(PROMPTS, seeds, strict=True)):
        alone = backbone.generate_codes([prompt], guidance_scale=guidance, seeds=[seed])
        assert torch.equal(together[row], alone[0])
    assert not torch.equal(together[0], together[2]), "their own seeds"
