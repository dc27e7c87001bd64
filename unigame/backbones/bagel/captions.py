"""Captions that are read once for all steps of free drawing.

Text never sees the picture that is drawn behind it, so what each layer makes of a caption is the
same at every step: its keys and values are kept, and only the picture goes through the language
model again, a mark, its latents, a mark.

Shape suffixes: B rows, T tokens of the longest caption, A heads, E width of a head, C channels and
h, w sides of a latent, N latents of a picture, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from unigame.backbones.bagel.layout import LATENT
from unigame.backbones.base import PromptTokens
from unigame.backbones.common.layout import PaddedTokens

if TYPE_CHECKING:
    from unigame.backbones.bagel.model import BagelBackbone


class FixedCache:
    """Keys and values (B, A, T, E) of each layer, which are read and never grow.

    Args:
        layers: of each layer.
        length: T.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        self.layers, self.length = layers, length

    def get_seq_length(self) -> int:
        """Tokens before those that look."""
        return self.length

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """What a layer's tokens look at: the cached ones, and themselves."""
        before = self.layers[layer]
        return torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)


class ReadCaptions:
    """Rows that are drawn, of which the text is read already.

    Args:
        backbone: in evaluation mode and its own precision, here and in ``states``; its weights must
            not change while this is in use.
        prompts: rows as ``BagelLayout.prompt_ids`` makes them; some may have no text.
    """

    @torch.no_grad()
    def __init__(self, backbone: BagelBackbone, prompts: Sequence[PromptTokens]) -> None:
        self.backbone = backbone
        layout = backbone.layout
        self.tokens = layout.pad([prompt.ids for prompt in prompts], "left", backbone.device)
        self.length = self.tokens.ids_BL.shape[1] - len(layout.drawing_start())
        self.layers: list[tuple[Tensor, Tensor]] = []
        if not self.length:
            return  # no row has a text
        text, cache = slice(self.length), DynamicCache()
        mask_BT = self.tokens.mask_BL[:, text].clone()
        mask_BT[:, -1] = 1  # a row without text would look at nothing; nobody looks at it later
        backbone.language_model(
            inputs_embeds=backbone.base.get_input_embeddings()(self.tokens.ids_BL[:, text]),
            attention_mask=mask_BT,
            position_ids=self.tokens.positions_BL[:, text],
            past_key_values=cache,
        )
        self.layers = [(layer.keys, layer.values) for layer in cache.layers]

    def states(self, noisy_BChw: Tensor, level_B: Tensor) -> Tensor:
        """``BagelBackbone.latent_states`` of the first B rows, (B, N, H)."""
        backbone, rows, picture = self.backbone, slice(len(noisy_BChw)), slice(self.length, None)
        tokens = PaddedTokens(
            self.tokens.ids_BL[rows, picture],
            self.tokens.mask_BL[rows, picture],
            self.tokens.positions_BL[rows, picture],
        )
        places = backbone.layout.latents(tokens)
        kept = [(keys[rows], values[rows]) for keys, values in self.layers]
        latents_BNH = backbone.bagel.latent_tokens(noisy_BChw, level_B.to(backbone.device))
        states_BLH = backbone.language_model(
            inputs_embeds=backbone.fill_places(tokens, LATENT, latents_BNH),
            attention_mask=self.tokens.mask_BL[rows],
            position_ids=tokens.positions_BL,
            past_key_values=FixedCache(kept, self.length) if kept else None,
            drawn=places,
        ).last_hidden_state
        return states_BLH[:, places]
