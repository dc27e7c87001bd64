"""Janus and Janus-Pro behind the backbone contract, on transformers' own classes.

Understanding reads a SigLIP-type tower through an aligner; generation draws codes of a VQ image
tokenizer; one Llama-type language model serves both. LoRA sits on that language model; everything
else is frozen and stays in evaluation mode.

Shape suffixes: see ``base.py``; further M = B*K rows, E code width, L tokens of the padded text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor

from unigame.backbones.base import PromptTokens
from unigame.backbones.common.autoregressive import AutoregressiveBackbone
from unigame.backbones.common.fast import lean_decoder
from unigame.backbones.common.layout import PaddedTokens
from unigame.backbones.common.pixels import PixelTwin
from unigame.backbones.common.understanding import full_precision
from unigame.backbones.janus.layout import JanusLayout
from unigame.errors import UserError


class JanusBackbone(AutoregressiveBackbone):
    """A frozen Janus.

    Args:
        model: any model of the family; it is frozen here and used in place.
        processor: its processor, with a chat template.

    Raises:
        UserError: model and processor disagree on the image size or the number of image tokens.
    """

    frozen_parts = (
        "vision_model",
        "aligner",
        "vqmodel",
        "generation_embeddings",
        "generation_aligner",
        "generation_head",
        "lm_head",
    )
    layout: JanusLayout
    max_images = 8

    def __init__(self, model: JanusForConditionalGeneration, processor: JanusProcessor) -> None:
        pixels = PixelTwin(processor.image_processor)
        super().__init__(model, processor, JanusLayout(processor), pixels)
        vision = cast(JanusConfig, model.config).vision_config
        size, tokens = vision.image_size, (vision.image_size // vision.patch_size) ** 2
        if (pixels.image_size, self.layout.num_image_tokens) != (size, tokens):
            raise UserError(
                f"the processor makes {pixels.image_size} px images of "
                f"{self.layout.num_image_tokens} tokens, the model reads {size} px and {tokens} "
                "tokens; load model and processor from the same checkpoint"
            )
        self.facts = self._facts("janus")
        self.eval()

    @property
    def janus(self) -> JanusForConditionalGeneration:
        """The transformers model; with LoRA its linear layers are PEFT's, in place."""
        return cast(JanusForConditionalGeneration, self.base)

    def frozen_towers(self) -> list[Any]:
        return [self.janus.model.vision_model]

    # ---- understanding -------------------------------------------------------------------------
    def image_features(self, images: Tensor) -> Tensor:
        with self._precision():
            pixels = self.pixels.normalise(images)
            return self.janus.model.vision_model(pixel_values=pixels).last_hidden_state

    def read_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.image_features(images)
        with self._precision():
            return features, self.janus.model.aligner(features)

    # ---- generation ----------------------------------------------------------------------------
    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        # In float32 at least, and the nearest code by direction, as in the authors' code, which
        # brings latents and code vectors to length 1. transformers compares them as they are,
        # which finds another code where vectors are not of length 1.
        vq = self.janus.model.vqmodel
        with torch.autocast(self.device.type, enabled=False):
            latents = vq.quant_conv(vq.encoder(self.pixels.normalise(images)))
            scores_BNV = latents.flatten(2).transpose(1, 2) @ self.codebook().T
        return scores_BNV.argmax(-1)

    def image_logits(self, states_BNH: Tensor) -> Tensor:
        head = self.janus.model.generation_head
        states_BNH = full_precision(states_BNH)
        weights = {name: p.to(states_BNH.dtype) for name, p in head.named_parameters()}
        with torch.autocast(states_BNH.device.type, enabled=False):
            return torch.func.functional_call(head, weights, (states_BNH,))

    def code_scores(self, states_H: Tensor) -> Tensor:
        return self.janus.model.generation_head(states_H)

    def image_states(
        self, prompts: Sequence[PromptTokens], codes_BN: Tensor, read_BNH: Tensor | None = None
    ) -> Tensor:
        count = codes_BN.shape[1]
        tokens = self._room_for(prompts, count - 1)
        embeds_BLH = self.prompt_embeds(tokens, read_BNH)
        drawn = self.janus.prepare_embeddings_for_image_generation(codes_BN[:, :-1])
        text_BLH = embeds_BLH[:, : embeds_BLH.shape[1] - drawn.shape[1]]
        embeds_BLH = torch.cat([text_BLH, drawn.to(text_BLH.dtype)], dim=1)
        return self.language_states(embeds_BLH, tokens)[:, -count:]

    def drawing_rows(self, prompts: Sequence[PromptTokens], guided: bool) -> PaddedTokens:
        tokens = self.layout.pad([prompt.ids for prompt in prompts], "left", self.device)
        if not guided:
            return tokens
        return PaddedTokens(
            torch.cat([tokens.ids_BL, self.layout.unconditional(tokens.ids_BL)]),
            tokens.mask_BL.repeat(2, 1),
            tokens.positions_BL.repeat(2, 1),
        )

    def feed_codes(self, codes_B1: Tensor, count: int) -> Tensor:
        return self.janus.prepare_embeddings_for_image_generation(codes_B1)

    def codebook(self) -> Tensor:
        # Of unit norm, as the class's decoder expects them.
        return F.normalize(self.janus.model.vqmodel.quantize.embedding.weight, p=2, dim=-1)

    def kinship(self) -> Tensor:
        """The image head's rows: 8 numbers of a code do not tell content from style."""
        head = self.janus.model.generation_head.vision_head
        return cast(Tensor, head.weight)

    def decode_vectors(self, vectors_MNE: Tensor) -> Tensor:
        if self.checkpointing and vectors_MNE.requires_grad:
            return cast(Tensor, checkpoint(self._decode, vectors_MNE, use_reentrant=False))
        return self._decode(vectors_MNE)

    def _decode(self, vectors_MNE: Tensor) -> Tensor:
        vq = self.janus.model.vqmodel
        height, width = vq.quantize.quant_state_dims
        grid = vectors_MNE.transpose(1, 2).unflatten(2, (height, width)).contiguous()
        with self._precision():
            latents = vq.post_quant_conv(grid)
            lean = self.lean_drawing
            pixels = lean_decoder.decode(vq.decoder, latents) if lean else vq.decoder(latents)
        return self.pixels.unnormalise(pixels)
