"""What a frozen understanding expert makes of captions: made once, read at every step.

Text never sees the picture that is drawn behind it, so while the expert that reads text is frozen,
keys and values of a caption are constants. Only the picture then goes through the language model:
a mark, its latents, a mark. States are those of ``BagelBackbone.latent_states``.

Shape suffixes: P captions of the pool, B rows, T tokens of the longest caption, N latents of a
picture, A heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from unigame.backbones.bagel.captions import FixedCache
from unigame.backbones.bagel.layout import LATENT
from unigame.backbones.base import PromptTokens

from .nano import BagelNano

AT_ONCE = 500
"""Captions that are read together."""


class Captions:
    """Keys and values of all captions, right-padded: 1.6 GB of 14,000.

    Args:
        nano: its understanding expert must not change any more.
        prompts: captions, as they are drawn.
    """

    @torch.no_grad()
    def __init__(self, nano: BagelNano, prompts: Sequence[PromptTokens]) -> None:
        self.nano = nano
        drawn = len(nano.layout.drawing_start())
        texts = [prompt.ids[:-drawn] for prompt in prompts]
        self.length_P = torch.tensor([len(text) for text in texts])
        longest = int(self.length_P.max())
        parts = []
        for at in range(0, len(texts), AT_ONCE):
            block = texts[at : at + AT_ONCE]
            ids = [[*text, *[nano.layout.pad_id] * (longest - len(text))] for text in block]
            cache = DynamicCache(config=nano.model.decoder.config)
            nano.model.decoder(
                inputs_embeds=nano.model.get_input_embeddings()(torch.tensor(ids)),
                attention_mask=_mask(self.length_P[at : at + AT_ONCE], longest),
                position_ids=torch.arange(longest).expand(len(block), -1),
                past_key_values=cache,
            )
            parts.append([(layer.keys, layer.values) for layer in cache.layers])
        self.layers = [
            (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]))
            for layer in zip(*parts, strict=True)
        ]

    def states(self, rows_B: Tensor, kept_B: Tensor, noisy_BChw: Tensor, level_B: Tensor) -> Tensor:
        """As ``latent_states``, (B, N, H), of captions ``rows_B``; not ``kept_B``: without one."""
        nano, length_B = self.nano, self.length_P[rows_B] * kept_B
        longest = int(length_B.max())
        picture = [nano.layout.drawing_start()] * len(rows_B)
        tokens = nano.layout.pad(picture, "left", noisy_BChw.device)
        latents_BNH = nano.model.latent_tokens(noisy_BChw, level_B)
        places = nano.layout.latents(tokens)
        states_BLH = nano.model.decoder(
            inputs_embeds=nano.backbone.fill_places(tokens, LATENT, latents_BNH),
            attention_mask=torch.cat([_mask(length_B, longest), tokens.mask_BL], dim=1),
            position_ids=length_B[:, None].expand(-1, tokens.ids_BL.shape[1]),
            past_key_values=FixedCache(
                [(k[rows_B, :, :longest], v[rows_B, :, :longest]) for k, v in self.layers], longest
            ),
            drawn=places,
        ).last_hidden_state
        return states_BLH[:, places]


def _mask(length_B: Tensor, longest: int) -> Tensor:
    """1 where a right-padded row has a token, (B, T)."""
    return (torch.arange(longest) < length_B[:, None]).long()
