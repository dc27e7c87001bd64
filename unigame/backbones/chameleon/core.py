"""Chameleon as an object: loading with or without an image decoder, and its image tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonProcessor
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from unigame.backbones.base import BackboneFacts
from unigame.backbones.chameleon.decoder import (
    DECODER_FILES,
    DECODER_PARTS,
    DrawingChameleon,
    load_decoder,
)
from unigame.backbones.chameleon.layout import ChameleonLayout
from unigame.backbones.chameleon.pixels import ChameleonPixels, load_processor
from unigame.backbones.common.autoregressive import AutoregressiveBackbone
from unigame.backbones.common.hub_model import LORA_TARGETS, load_weights
from unigame.backbones.folder import check_files
from unigame.backbones.model_files import loading_from, processor_from
from unigame.errors import UserError

FROZEN_PARTS = ("vqmodel", "embed_tokens", "lm_head")


class ChameleonCore(AutoregressiveBackbone):
    """A frozen Chameleon with its processor, LoRA, checkpointing and precision.

    Args:
        model: any model of the family, with or without an image decoder; it is frozen here and
            used in place.
        processor: its processor.

    Raises:
        UserError: model and processor do not belong together, or the processor resizes in a way
            that has no differentiable twin.
    """

    frozen_parts = FROZEN_PARTS
    language_name = "layers"
    layout: ChameleonLayout
    token_V: Tensor
    """Vocabulary id of every image code."""

    def __init__(
        self, model: ChameleonForConditionalGeneration, processor: ChameleonProcessor
    ) -> None:
        vq = model.model.vqmodel.config
        _check_tokens(model.config, processor)
        pixels = ChameleonPixels(processor.image_processor, int(vq.resolution))
        super().__init__(model, processor, ChameleonLayout(processor), pixels)
        mapping_V = model.model.vocabulary_mapping.img2bpe_mapping_tensor.long()
        self.register_buffer("token_V", mapping_V.to(self.device), persistent=False)
        self.facts = self._facts()
        self.eval()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, dtype: str = "float32", device: torch.device | None = None
    ) -> Self:
        """Load a checkpoint in the Hub format; ``load_backbone`` calls this.

        The image decoder comes from the checkpoint's own weights, else from a file of
        ``DECODER_FILES`` in its folder, else the backbone only understands.

        Raises:
            UserError: files are missing or unreadable, tokens do not fit the image tokenizer (said
                before weights are read), or weights do not fit the configuration.
        """
        if isinstance(name_or_path, Path):
            check_files(name_or_path)
        with processor_from(name_or_path):
            processor = load_processor(name_or_path)
        with loading_from(name_or_path, ("config.json",)):
            _check_tokens(ChameleonConfig.from_pretrained(name_or_path), processor)
        parts = [f"model.vqmodel.{part}" for part in DECODER_PARTS]
        model = load_weights(DrawingChameleon, name_or_path, dtype, optional=parts)
        backbone = cls(model, processor)
        if isinstance(name_or_path, Path) and not backbone.can_draw:
            files = [name_or_path / name for name in DECODER_FILES]
            found = next((file for file in files if file.is_file()), None)
            if found is not None:
                backbone.load_decoder(found)
        return backbone.to(device or torch.device("cpu"))

    @property
    def chameleon(self) -> ChameleonForConditionalGeneration:
        """The transformers model; with LoRA its linear layers are PEFT's, in place."""
        return cast(ChameleonForConditionalGeneration, self.base)

    @property
    def language_model(self) -> Any:
        """The model without its head; its image tokenizer is not called by token embeddings."""
        return self.base.model

    # ---- the image decoder ---------------------------------------------------------------------
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
        if not Path(file).is_file():
            raise UserError(f"image decoder {str(file)!r} is missing; give Meta's vqgan.ckpt")
        load_decoder(self.chameleon.model.vqmodel, Path(file))
        self.facts = self._facts()

    def require_drawing(self) -> None:
        """Nothing, where there is an image decoder.

        Raises:
            UserError: there is none.
        """
        if not self.can_draw:
            raise UserError(
                "this Chameleon has no image decoder, so it reads pictures but draws none; use a "
                "folder of the checkpoint with Meta's vqgan.ckpt in it "
                "(docs/backbones/chameleon.md)"
            )

    # ---- facts ---------------------------------------------------------------------------------
    def _facts(self) -> BackboneFacts:
        config = self.chameleon.config
        return BackboneFacts(
            family="chameleon",
            image_size=self.pixels.image_size,
            num_image_tokens=self.layout.num_image_tokens,
            hidden_size=int(config.hidden_size),
            codebook_size=len(self.token_V),
            lora_targets=LORA_TARGETS,
            frozen_parts=FROZEN_PARTS,
            dtype=self.dtype,
            num_parameters=sum(p.numel() for p in self.chameleon.parameters()),
        )


def _check_tokens(config: ChameleonConfig, processor: ChameleonProcessor) -> None:
    """Every code has a token, and the processor makes as many of a picture as there are codes."""
    vq = config.vq_config
    codes = ChameleonImageVocabularyMapping(config.vocabulary_map or {}).img2bpe
    if sorted(codes) != list(range(vq.num_embeddings)):
        raise UserError(
            f"vocabulary_map in config.json names {len(codes)} image tokens, the image tokenizer "
            f"has {vq.num_embeddings} codes; download the checkpoint again"
        )
    side = vq.resolution // 2 ** (len(vq.channel_multiplier) - 1)
    if int(processor.image_seq_length) != side**2:
        raise UserError(
            f"the processor makes {processor.image_seq_length} tokens of a picture, the image "
            f"tokenizer {side} x {side}; load model and processor from the same checkpoint"
        )
