"""Greedy, cached, batched text decoding of composed models.

Shape suffixes: B samples, L prompt tokens, H width of the language model, V words.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from unigame.backbones.composed_layout import Rows


@torch.no_grad()
def decode_text(
    decoder: Any,
    embed: Any,
    head: Any,
    embeds_BLH: Tensor,
    rows: Rows,
    *,
    max_new_tokens: int,
    end_ids: Collection[int],
) -> list[list[int]]:
    """Token ids of each row, up to and without its end mark.

    Args:
        decoder: the language model without its head, in evaluation mode.
        embed: its input embedding.
        head: its output layer.
        embeds_BLH: left-padded prompts, image tokens in place.
        rows: their mask and positions.
        max_new_tokens: stop a row here at the latest.
        end_ids: token ids that end an answer.
    """
    cache = DynamicCache(config=decoder.config)
    mask_BL, next_B1 = rows.mask_BL, rows.next_position_B1
    ends = torch.tensor(sorted(end_ids), device=embeds_BLH.device)
    done_B = torch.zeros(len(embeds_BLH), dtype=torch.bool, device=embeds_BLH.device)
    chosen: list[Tensor] = []
    embeds, positions = embeds_BLH, rows.positions
    while len(chosen) < max_new_tokens:
        hidden_BH = decoder(
            inputs_embeds=embeds,
            attention_mask=mask_BL,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        token_B = head(hidden_BH).argmax(-1)
        done_B = done_B | torch.isin(token_B, ends)
        if bool(done_B.all()):
            break
        chosen.append(token_B.masked_fill(done_B, -1))  # -1: this row is finished
        embeds = embed(token_B[:, None])
        mask_BL = torch.cat([mask_BL, torch.ones_like(mask_BL[:, :1])], dim=-1)
        axes = rows.positions.dim() - next_B1.dim()
        positions = next_B1.expand(len(rows.positions), -1, -1) if axes else next_B1
        next_B1 = next_B1 + 1
    rows_of_ids = torch.stack(chosen, 1).tolist() if chosen else [[] for _ in embeds_BLH]
    return [[token for token in row if token >= 0] for row in rows_of_ids]
