"""Emu3 behind the backbone contract, on transformers' own classes.

One stream of tokens: a picture is a grid of codes of a VQ tokenizer, which stand in the text as
ordinary tokens, when it is read as when it is drawn. So z = Proj(Enc(x)) are the embeddings of the
picture's codes, and the gradient of L_C has to pass two discrete steps: drawing (``codebook.py``)
and the tokenizer's own choice of codes when the drawn pixels are read again (``code_reading.py``).
Both are straight-through. LoRA sits on the language model; tokenizer, embeddings and head are
frozen. The verbs shared with other families are in ``autoregressive.py``.

Shape suffixes: see ``base.py``; further M = B*K rows, E code width, T tokens fed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unigame.backbones.base import PromptTokens
from unigame.backbones.common.autoregressive import full_precision
from unigame.backbones.common.code_reading import nearest_codes, read_codes, soft_codes
from unigame.backbones.common.layout import PaddedTokens
from unigame.backbones.common.piecewise import in_parts
from unigame.backbones.emu3 import vision as emu3_vision
from unigame.backbones.emu3.core import Emu3Core


class Emu3Backbone(Emu3Core):
    """What is particular to Emu3. See ``AutoregressiveBackbone`` for the other verbs."""

    negative_prompt = ""
    """The text of the unconditional branch under guidance."""

    # ---- understanding -------------------------------------------------------------------------
    def image_features(self, images: Tensor) -> Tensor:
        """The tokenizer's latents (B, N, E) before quantisation. Differentiable in images.

        In float32 at least and outside autocast: in bfloat16 the nearest code is another one.
        """
        pixels = self.pixels.normalise(images).to(self.codebook().dtype)
        with torch.autocast(self.device.type, enabled=False):
            return self._in_parts(self._encode, pixels)

    def read_images(self, images: Tensor, *, hard: bool = True) -> tuple[Tensor, Tensor]:
        """Latents (B, N, E) and the embeddings z (B, N, H) of their codes, in one pass.

        ``hard=False`` gives the mixture of embeddings itself: a smooth map whose gradient is
        exact, for checking the gradient.
        """
        latents_BNE = self.image_features(images)
        embedding = self.emu3.get_input_embeddings()
        table_VH = self.visual_rows(embedding.weight)
        if not hard:
            return latents_BNE, soft_codes(latents_BNE, self.codebook(), table_VH)
        codes_BN = nearest_codes(latents_BNE, self.codebook())
        embeds_BNH = embedding(self.token_V[codes_BN])
        return latents_BNE, read_codes(embeds_BNH, latents_BNE, self.codebook(), table_VH)

    # ---- generation ----------------------------------------------------------------------------
    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """The image tokenizer: images -> codes (B, N), in float32 at least. No gradient."""
        return nearest_codes(self.image_features(images), self.codebook())

    def image_logits(self, states_BNH: Tensor) -> Tensor:
        """Scores of every code at every position, (B, N, V), in float32 at least.

        The head's rows of image codes run outside autocast, raised to float32: in bfloat16 the
        rounding of ``z_hat + delta`` would swallow a delta of norm 0.01.
        """
        states_BNH = full_precision(states_BNH)
        head_VH = self.visual_rows(self.emu3.lm_head.weight).to(states_BNH.dtype)
        with torch.autocast(states_BNH.device.type, enabled=False):
            return F.linear(states_BNH, head_VH)

    def code_scores(self, states_H: Tensor) -> Tensor:
        """Scores of every code from hidden states, in the precision that is set."""
        return F.linear(states_H, self.visual_rows(self.emu3.lm_head.weight))

    def image_states(self, prompts: Sequence[PromptTokens], codes_BN: Tensor) -> Tensor:
        """Hidden states (after the final norm) at the N positions that predict the codes."""
        layout = self.layout
        # Nothing follows the last code: it and its row end predict no code.
        drawn_BT = layout.grid_ids(self.token_V[codes_BN])[:, :-2]
        count = drawn_BT.shape[1]
        rows = [prompt.ids + (layout.pad_id,) * count for prompt in prompts]
        tokens = layout.pad(rows, "left", self.device)
        tokens.ids_BL[:, -count:] = drawn_BT
        embeds_BLH = self.emu3.get_input_embeddings()(tokens.ids_BL)
        states_BLH = self.language_states(embeds_BLH, tokens)[:, -count - 1 :]
        return states_BLH[:, layout.predicting().to(self.device)]

    def drawing_rows(self, prompts: Sequence[PromptTokens], guided: bool) -> PaddedTokens:
        """Left-padded prompts; with guidance, as many negative prompts behind them."""
        rows = [prompt.ids for prompt in prompts]
        if guided:
            rows += [self.preprocessor.prompt(self.negative_prompt).ids] * len(prompts)
        return self.layout.pad(rows, "left", self.device)

    def feed_codes(self, codes_B1: Tensor, count: int) -> Tensor:
        """Embeddings (B, T, H) of the codes just drawn, and of a row end where a row is full."""
        tokens_BT = self.token_V[codes_B1]
        if count % self.layout.grid == 0:
            tokens_BT = F.pad(tokens_BT, (0, 1), value=self.layout.row_end_id)
        return self.emu3.get_input_embeddings()(tokens_BT)

    @property
    def drawing_room(self) -> int:
        """A picture's codes and the ends of its rows."""
        return self.layout.num_image_tokens + self.layout.grid

    def kinship(self) -> Tensor:
        """What the language model reads of each code."""
        return self.visual_rows(self.emu3.get_input_embeddings().weight)

    def decode_vectors(self, vectors_MNE: Tensor) -> Tensor:
        """Codebook vectors (M, N, E) -> images (M, 3, S, S) in [0, 1]. Differentiable."""
        return self._in_parts(self._decode, vectors_MNE)

    # ---- inside --------------------------------------------------------------------------------
    def _in_parts(self, convolve: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        return in_parts(convolve, rows, side=self.facts.image_size, recompute=self.checkpointing)

    def _encode(self, pixels_B3SS: Tensor) -> Tensor:
        return emu3_vision.encode(self.emu3.model.vqmodel, pixels_B3SS)

    def _decode(self, vectors_MNE: Tensor) -> Tensor:
        with self._precision():
            pixels = emu3_vision.decode(self.emu3.model.vqmodel, vectors_MNE, self.layout.grid)
        return self.pixels.unnormalise(pixels)
