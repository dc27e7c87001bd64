"""Janus as an object: what ``HubModel`` needs to know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import torch
from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor

from unigame.backbones.base import BackboneFacts
from unigame.backbones.common.autoregressive import AutoregressiveBackbone
from unigame.backbones.common.hub_model import LORA_TARGETS, load_weights
from unigame.backbones.common.pixels import PixelTwin
from unigame.backbones.folder import check_files
from unigame.backbones.janus.layout import JanusLayout
from unigame.backbones.janus.processor import load_processor
from unigame.backbones.model_files import processor_from
from unigame.errors import UserError

FROZEN_PARTS = (
    "vision_model",
    "aligner",
    "vqmodel",
    "generation_embeddings",
    "generation_aligner",
    "generation_head",
    "lm_head",
)


class JanusCore(AutoregressiveBackbone):
    """A frozen Janus with its processor, LoRA, checkpointing and precision.

    Args:
        model: any model of the family; it is frozen here and used in place.
        processor: its processor, with a chat template.

    Raises:
        UserError: model and processor disagree on the image size or the number of image tokens.
    """

    frozen_parts = FROZEN_PARTS
    layout: JanusLayout

    def __init__(self, model: JanusForConditionalGeneration, processor: JanusProcessor) -> None:
        pixels = PixelTwin(processor.image_processor)
        super().__init__(model, processor, JanusLayout(processor), pixels)
        self.facts = self._facts()
        self.eval()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, dtype: str = "float32", device: torch.device | None = None
    ) -> Self:
        """Load a checkpoint in the Hub format of Janus or Janus-Pro; ``load_backbone`` calls this.

        Raises:
            UserError: files are missing or unreadable, or weights do not fit the configuration.
        """
        if isinstance(name_or_path, Path):
            check_files(name_or_path)
        with processor_from(name_or_path):
            processor = load_processor(name_or_path)
        model = load_weights(JanusForConditionalGeneration, name_or_path, dtype)
        return cls(model.to(device or torch.device("cpu")), processor).to(device)

    @property
    def janus(self) -> JanusForConditionalGeneration:
        """The transformers model; with LoRA its linear layers are PEFT's, in place."""
        return cast(JanusForConditionalGeneration, self.base)

    def frozen_towers(self) -> list[Any]:
        """The SigLIP-type tower that understanding reads by."""
        return [self.janus.model.vision_model]

    def _facts(self) -> BackboneFacts:
        config = cast(JanusConfig, self.janus.config)
        size, patch = int(config.vision_config.image_size), int(config.vision_config.patch_size)
        tokens = (size // patch) ** 2
        if (self.pixels.image_size, self.layout.num_image_tokens) != (size, tokens):
            raise UserError(
                f"the processor makes {self.pixels.image_size} px images of "
                f"{self.layout.num_image_tokens} tokens, the model reads {size} px and {tokens} "
                "tokens; load model and processor from the same checkpoint"
            )
        return BackboneFacts(
            family="janus",
            image_size=size,
            num_image_tokens=tokens,
            hidden_size=int(config.text_config.hidden_size),
            codebook_size=int(config.vq_config.num_embeddings),
            lora_targets=LORA_TARGETS,
            frozen_parts=FROZEN_PARTS,
            dtype=self.dtype,
            num_parameters=sum(p.numel() for p in self.janus.parameters()),
        )
