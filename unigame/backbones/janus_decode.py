"""Free-running decoding of Janus, cached and batched: text answers and image codes.

Both loops run the language model itself rather than transformers' ``generate``: the text head never
sees an image token, guidance of 1 is allowed, and sampling uses its own generator.

Shape suffixes: B samples, L prompt tokens, N image tokens, H width of the LM, V codes.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from transformers import DynamicCache, JanusForConditionalGeneration

from unigame.backbones.janus_layout import JanusLayout, PaddedTokens


class _CachedLM:
    """The language model with its cache: feed embeddings, get the newest hidden state."""

    def __init__(self, janus: JanusForConditionalGeneration, mask_BL: Tensor) -> None:
        self.language_model = janus.model.language_model
        self.cache = DynamicCache(config=self.language_model.config)
        self.mask_BL = mask_BL
        self.next_position_B1 = mask_BL.sum(-1, keepdim=True)

    def start(self, embeds_BLH: Tensor, positions_BL: Tensor) -> Tensor:
        return self._run(embeds_BLH, positions_BL)

    def step(self, embeds_B1H: Tensor) -> Tensor:
        self.mask_BL = torch.cat([self.mask_BL, torch.ones_like(self.next_position_B1)], dim=-1)
        hidden_BH = self._run(embeds_B1H, self.next_position_B1)
        self.next_position_B1 = self.next_position_B1 + 1
        return hidden_BH

    def _run(self, embeds: Tensor, positions: Tensor) -> Tensor:
        output = self.language_model(
            inputs_embeds=embeds,
            attention_mask=self.mask_BL,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]


@torch.no_grad()
def decode_text(
    janus: JanusForConditionalGeneration,
    embeds_BLH: Tensor,
    tokens: PaddedTokens,
    *,
    max_new_tokens: int,
    end_ids: Collection[int],
) -> list[list[int]]:
    """Greedy token ids of each row, up to and without its end mark.

    Args:
        janus: the model, in evaluation mode.
        embeds_BLH: left-padded prompts, image features in place.
        tokens: their mask and positions.
        max_new_tokens: stop a row here at the latest.
        end_ids: token ids that end an answer.
    """
    model = _CachedLM(janus, tokens.mask_BL)
    hidden_BH = model.start(embeds_BLH, tokens.positions_BL)
    ends = torch.tensor(sorted(end_ids), device=embeds_BLH.device)
    done_B = torch.zeros(len(embeds_BLH), dtype=torch.bool, device=embeds_BLH.device)
    chosen: list[Tensor] = []
    while len(chosen) < max_new_tokens:
        next_B = janus.lm_head(hidden_BH).argmax(-1)
        done_B = done_B | torch.isin(next_B, ends)
        if bool(done_B.all()):
            break
        chosen.append(next_B.masked_fill(done_B, -1))  # -1: this row is finished
        if len(chosen) < max_new_tokens:
            hidden_BH = model.step(janus.get_input_embeddings()(next_B[:, None]))
    rows = torch.stack(chosen, dim=1).tolist() if chosen else [[] for _ in range(len(embeds_BLH))]
    return [[token for token in row if token >= 0] for row in rows]


@torch.no_grad()
def decode_image_codes(
    janus: JanusForConditionalGeneration,
    layout: JanusLayout,
    tokens: PaddedTokens,
    *,
    generator: torch.Generator,
    guidance_scale: float,
    temperature: float,
    do_sample: bool,
) -> Tensor:
    """Image codes (B, N) of left-padded text prompts, with classifier-free guidance.

    Guidance is transformers': a second branch whose text is replaced by padding, and logits
    ``plain + guidance_scale * (conditional - plain)``. At a scale of 1 the branch is left out.
    """
    ids_BL, mask_BL, positions_BL = tokens.ids_BL, tokens.mask_BL, tokens.positions_BL
    guided = guidance_scale != 1.0
    if guided:
        ids_BL = torch.cat([ids_BL, layout.unconditional(ids_BL)])
        mask_BL, positions_BL = mask_BL.repeat(2, 1), positions_BL.repeat(2, 1)
    model = _CachedLM(janus, mask_BL)
    hidden_BH = model.start(janus.get_input_embeddings()(ids_BL), positions_BL)
    codes: list[Tensor] = []
    while True:
        logits_BV = janus.model.generation_head(hidden_BH).float()
        if guided:
            conditional_BV, plain_BV = logits_BV.chunk(2)
            logits_BV = plain_BV + guidance_scale * (conditional_BV - plain_BV)
        if do_sample:
            probs_BV = (logits_BV / temperature).softmax(-1)
            code_B = torch.multinomial(probs_BV, 1, generator=generator).squeeze(-1)
        else:
            code_B = logits_BV.argmax(-1)
        codes.append(code_B)
        if len(codes) == layout.num_image_tokens:
            return torch.stack(codes, dim=1)
        fed_B1 = (code_B.repeat(2) if guided else code_B)[:, None]
        hidden_BH = model.step(janus.prepare_embeddings_for_image_generation(fed_B1))
