"""Prompts through a language model, each different one once, for drawing that goes on from them.

Shape suffixes: B rows, L prompt tokens, H width of the LM, U different rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from unigame.backbones.common.layout import PaddedTokens


def read_prompts(model: Any, embeds_BLH: Tensor, tokens: PaddedTokens) -> tuple[Tensor, Any]:
    """The newest hidden state (B, H) of every row, and the cache of all rows.

    Rows of equal tokens go through the model once: the K drawings of one prompt, and with guidance
    the unconditional twins of all prompts of one length.

    Args:
        model: the language model without its head, in evaluation mode.
        embeds_BLH: what goes in; a function of the tokens.
        tokens: the left-padded rows.
    """
    first_U, source_B = distinct_rows(tokens)
    cache = DynamicCache(config=model.config)
    output = model(
        inputs_embeds=embeds_BLH[first_U],
        attention_mask=tokens.mask_BL[first_U],
        position_ids=tokens.positions[..., first_U, :],
        past_key_values=cache,
        use_cache=True,
    )
    cache.batch_select_indices(source_B)
    return output.last_hidden_state[source_B, -1], cache


def distinct_rows(tokens: PaddedTokens) -> tuple[Tensor, Tensor]:
    """Which rows are the first of their tokens, (U,), and for every row which of these, (B,)."""
    rows = torch.cat([tokens.ids_BL, tokens.mask_BL], dim=-1).tolist()
    numbers: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    source: list[int] = []
    for index, row in enumerate(map(tuple, rows)):
        if row not in numbers:
            numbers[row] = len(first)
            first.append(index)
        source.append(numbers[row])
    device = tokens.ids_BL.device
    return torch.tensor(first, device=device), torch.tensor(source, device=device)
