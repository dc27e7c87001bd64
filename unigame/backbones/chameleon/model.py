"""Chameleon behind the backbone contract, on transformers' own classes and the decoder they lack.

A picture is a grid of codes of a VQGAN in the text itself (``EarlyFusionBackbone``). Transformers'
forward pass bans image tokens from its scores. That is right for answers and kept there; drawing
scores the image tokens alone. LoRA sits on the decoder layers; image tokenizer, embeddings and head
are frozen.

Shape suffixes: see ``base.py``; further M = B*K rows, E code width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonProcessor
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from unigame.backbones.base import PromptTokens
from unigame.backbones.chameleon.layout import ChameleonLayout
from unigame.backbones.common.autoregressive import EarlyFusionBackbone, image_tokens
from unigame.backbones.common.layout import PaddedTokens
from unigame.backbones.common.pixels import CroppingTwin
from unigame.errors import UserError

DECODER_PARTS = ("decoder", "post_quant_conv")


class ChameleonBackbone(EarlyFusionBackbone):
    """A frozen Chameleon, with or without an image decoder.

    Args:
        model: any model of the family; it is frozen here and used in place.
        processor: its processor.

    Raises:
        UserError: model and processor do not belong together, or the processor resizes in a way
            that has no differentiable twin.
    """

    frozen_parts = ("vqmodel", "embed_tokens", "lm_head")
    language_name = "layers"
    layout: ChameleonLayout
    max_images = 3

    def __init__(
        self, model: ChameleonForConditionalGeneration, processor: ChameleonProcessor
    ) -> None:
        check_tokens(model.config, processor)
        pixels = CroppingTwin(processor.image_processor, int(model.config.vq_config.resolution))
        super().__init__(model, processor, ChameleonLayout(processor), pixels)
        self.set_tokens(model.model.vocabulary_mapping.img2bpe_mapping_tensor.long())
        self.facts = self._facts("chameleon")
        self.eval()

    @property
    def chameleon(self) -> ChameleonForConditionalGeneration:
        """The transformers model; with LoRA its linear layers are PEFT's, in place."""
        return cast(ChameleonForConditionalGeneration, self.base)

    @property
    def language_model(self) -> Any:
        """The model without its head; its image tokenizer is not called by token embeddings."""
        return self.base.model

    @property
    def can_draw(self) -> bool:
        """Whether there is an image decoder."""
        vq = self.chameleon.model.vqmodel
        return all(getattr(vq, part, None) is not None for part in DECODER_PARTS)

    def load_decoder(self, file: str | Path) -> None:
        """Take the image decoder of Meta's ``vqgan.ckpt`` (or the same tensors as safetensors).

        Raises:
            UserError: the file is missing, unreadable, or belongs to another image tokenizer.
        """
        from unigame.backbones.chameleon.load import load_decoder

        load_decoder(self.chameleon.model.vqmodel, Path(file))
        self.facts = self._facts("chameleon")

    def require_drawing(self) -> None:
        if not self.can_draw:
            raise UserError(
                "this Chameleon has no image decoder, so it reads pictures but draws none; use a "
                "folder of the checkpoint with Meta's vqgan.ckpt in it "
                "(docs/backbones/chameleon.md)"
            )

    def text_logits(self, states_H: Tensor) -> Tensor:
        """An image token is no next word of an answer, as in transformers."""
        logits = self.chameleon.lm_head(states_H)
        return logits.index_fill(-1, self.token_V, torch.finfo(logits.dtype).min)

    def _end_ids(self) -> set[int]:
        # An answer also ends with its turn and, as in Meta's code, where a picture would begin.
        return {*super()._end_ids(), self.layout.turn_end_id, self.layout.begin_image_id}

    def drawing_rows(self, prompts: Sequence[PromptTokens], guided: bool) -> PaddedTokens:
        self.require_drawing()
        rows = [prompt.ids for prompt in prompts]
        if guided:
            rows += [(self.layout.bos_id, self.layout.begin_image_id)] * len(prompts)
        return self.layout.pad(rows, "left", self.device)

    def decode_vectors(self, vectors_MNE: Tensor) -> Tensor:
        self.require_drawing()
        return super().decode_vectors(vectors_MNE)

    def _encode(self, pixels_B3SS: Tensor) -> Tensor:
        vq = self.chameleon.model.vqmodel
        return vq.quant_conv(vq.encoder(pixels_B3SS)).flatten(2).transpose(1, 2)

    def _decode(self, vectors_MNE: Tensor) -> Tensor:
        vq = self.chameleon.model.vqmodel
        side = round(vectors_MNE.shape[1] ** 0.5)
        grid = vectors_MNE.transpose(1, 2).unflatten(2, (side, side)).contiguous()
        return vq.decoder(vq.post_quant_conv(grid))


def check_tokens(config: ChameleonConfig, processor: ChameleonProcessor) -> None:
    """Every code has a token, and the processor makes as many of a picture as there are codes.

    Raises:
        UserError: otherwise.
    """
    vq = config.vq_config
    image_tokens(
        ChameleonImageVocabularyMapping(config.vocabulary_map or {}).img2bpe, vq.num_embeddings
    )
    side = vq.resolution // 2 ** (len(vq.channel_multiplier) - 1)
    if int(processor.image_seq_length) != side**2:
        raise UserError(
            f"the processor makes {processor.image_seq_length} tokens of a picture, the image "
            f"tokenizer {side} x {side}; load model and processor from the same checkpoint"
        )
