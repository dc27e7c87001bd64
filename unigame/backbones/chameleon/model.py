"""Chameleon behind the backbone contract, on transformers' own classes and the decoder they lack.

One stream of tokens: a picture is a grid of codes of a VQGAN, which stand in the text as ordinary
tokens, when it is read as when it is drawn. So z = Proj(Enc(x)) are the embeddings of the picture's
codes, and the gradient of L_C passes two discrete steps: drawing (``codebook.py``) and the image
tokenizer's choice of codes when the drawn pixels are read again. Both are straight-through.

Transformers' forward pass bans image tokens from its scores. That is right for answers and kept
there; drawing scores the image tokens alone. LoRA sits on the decoder layers; image tokenizer,
embeddings and head are frozen. The verbs shared with other families are in ``autoregressive.py``.

Shape suffixes: see ``base.py``; further M = B*K rows, E code width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unigame.backbones.base import PromptTokens
from unigame.backbones.chameleon.core import ChameleonCore
from unigame.backbones.common.autoregressive import full_precision
from unigame.backbones.common.code_reading import nearest_codes, read_codes, soft_codes
from unigame.backbones.common.layout import PaddedTokens
from unigame.backbones.common.piecewise import in_parts


class ChameleonBackbone(ChameleonCore):
    """What is particular to Chameleon. See ``AutoregressiveBackbone`` for the other verbs."""

    max_images = 3

    # ---- understanding -------------------------------------------------------------------------
    def image_features(self, images: Tensor) -> Tensor:
        """The image tokenizer's latents (B, N, E) before quantisation. Differentiable in images.

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
        table_VH = self.chameleon.get_input_embeddings().weight[self.token_V]
        if not hard:
            return latents_BNE, soft_codes(latents_BNE, self.codebook(), table_VH)
        embeds_BNH = table_VH[nearest_codes(latents_BNE, self.codebook())]
        return latents_BNE, read_codes(embeds_BNH, latents_BNE, self.codebook(), table_VH)

    def text_logits(self, states_H: Tensor) -> Tensor:
        """Scores of the next word of an answer; an image token is none, as in transformers."""
        logits = self.chameleon.lm_head(states_H)
        return logits.index_fill(-1, self.token_V, torch.finfo(logits.dtype).min)

    def _end_ids(self) -> set[int]:
        """An answer also ends with its turn and, as in Meta's code, where a picture would begin."""
        return {*super()._end_ids(), self.layout.turn_end_id, self.layout.begin_image_id}

    # ---- generation ----------------------------------------------------------------------------
    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """The image tokenizer: images -> codes (B, N), in float32 at least. No gradient."""
        return nearest_codes(self.image_features(images), self.codebook())

    def image_logits(self, states_BNH: Tensor) -> Tensor:
        """Scores of every code at every position, (B, N, V), in float32 at least.

        The head's rows of image tokens run outside autocast, raised to float32: in bfloat16 the
        rounding of ``z_hat + delta`` would swallow a delta of norm 0.01.
        """
        states_BNH = full_precision(states_BNH)
        head_VH = self.chameleon.lm_head.weight[self.token_V].to(states_BNH.dtype)
        with torch.autocast(states_BNH.device.type, enabled=False):
            return F.linear(states_BNH, head_VH)

    def code_scores(self, states_H: Tensor) -> Tensor:
        """Scores of every code from hidden states, in the precision that is set."""
        return F.linear(states_H, self.chameleon.lm_head.weight[self.token_V])

    def image_states(self, prompts: Sequence[PromptTokens], codes_BN: Tensor) -> Tensor:
        """Hidden states (after the final norm) at the N positions that predict the codes."""
        drawn_BT = self.token_V[codes_BN[:, :-1]]
        count = drawn_BT.shape[1]
        rows = [prompt.ids + (self.layout.pad_id,) * count for prompt in prompts]
        tokens = self.layout.pad(rows, "left", self.device)
        tokens.ids_BL[:, -count:] = drawn_BT
        embeds_BLH = self.chameleon.get_input_embeddings()(tokens.ids_BL)
        return self.language_states(embeds_BLH, tokens)[:, -count - 1 :]

    def drawing_rows(self, prompts: Sequence[PromptTokens], guided: bool) -> PaddedTokens:
        """Left-padded prompts; with guidance, as many rows behind them that say nothing.

        Raises:
            UserError: there is no image decoder, so drawing could not be finished.
        """
        self.require_drawing()
        rows = [prompt.ids for prompt in prompts]
        if guided:
            rows += [(self.layout.bos_id, self.layout.begin_image_id)] * len(prompts)
        return self.layout.pad(rows, "left", self.device)

    def feed_codes(self, codes_B1: Tensor, count: int) -> Tensor:
        """Embeddings (B, 1, H) of the codes just drawn."""
        return self.chameleon.get_input_embeddings()(self.token_V[codes_B1])

    def codebook(self) -> Tensor:
        """The vectors (V, E) that latents are compared with and that the decoder reads."""
        return self.chameleon.model.vqmodel.quantize.embedding.weight

    def kinship(self) -> Tensor:
        """What the language model reads of each code."""
        return self.chameleon.get_input_embeddings().weight[self.token_V]

    def decode_vectors(self, vectors_MNE: Tensor) -> Tensor:
        """Codebook vectors (M, N, E) -> images (M, 3, S, S) in [0, 1]. Differentiable.

        Raises:
            UserError: there is no image decoder.
        """
        self.require_drawing()
        return self._in_parts(self._decode, vectors_MNE)

    # ---- inside --------------------------------------------------------------------------------
    def _in_parts(self, convolve: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        return in_parts(convolve, rows, side=self.facts.image_size, recompute=self.checkpointing)

    def _encode(self, pixels_B3SS: Tensor) -> Tensor:
        vq = self.chameleon.model.vqmodel
        return vq.quant_conv(vq.encoder(pixels_B3SS)).flatten(2).transpose(1, 2)

    def _decode(self, vectors_MNE: Tensor) -> Tensor:
        vq = self.chameleon.model.vqmodel
        side = round(vectors_MNE.shape[1] ** 0.5)
        grid = vectors_MNE.transpose(1, 2).unflatten(2, (side, side)).contiguous()
        with self._precision():
            pixels = vq.decoder(vq.post_quant_conv(grid))
        return self.pixels.unnormalise(pixels)
