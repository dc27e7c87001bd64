"""Emu3 as an object: loading, the size of its pictures, and which tokens are image codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3Processor

from unigame.backbones.base import BackboneFacts
from unigame.backbones.common.autoregressive import AutoregressiveBackbone
from unigame.backbones.common.hub_model import LORA_TARGETS, load_weights
from unigame.backbones.common.pixels import PixelTwin
from unigame.backbones.composed.pixels import square_pixels
from unigame.backbones.emu3.layout import Emu3Layout, picture_side
from unigame.backbones.folder import check_files
from unigame.backbones.model_files import processor_from
from unigame.errors import UserError

FROZEN_PARTS = ("vqmodel", "lm_head")


class Emu3Core(AutoregressiveBackbone):
    """A frozen Emu3 with its processor, LoRA, checkpointing and precision.

    Args:
        model: any model of the family; it is frozen here and used in place.
        processor: its processor, with a chat template.

    Raises:
        UserError: model and processor do not belong together, or the processor resizes in a way
            that has no differentiable twin.
    """

    frozen_parts = FROZEN_PARTS
    language_name = "text_model"
    layout: Emu3Layout
    token_V: Tensor
    """Vocabulary id of every image code."""

    def __init__(self, model: Emu3ForConditionalGeneration, processor: Emu3Processor) -> None:
        patch = int(model.model.vqmodel.vision_spatial_factor)
        if patch != processor.downsample_ratio:
            raise UserError(
                f"the model's image tokenizer makes one code of {patch} px, its processor counts "
                f"{processor.downsample_ratio} px; load both from the same checkpoint"
            )
        side = picture_side(processor)
        layout = Emu3Layout(processor, side // patch)
        super().__init__(model, processor, layout, _pixels(processor.image_processor, side))
        for layer in self.language_model.layers:
            layer.dropout.p = 0.0  # set from attention_dropout, which HubModel has switched off
        tokens_V = _image_tokens(model.config, len(self.codebook()))
        self.register_buffer("token_V", tokens_V.to(self.device), persistent=False)
        first, last = int(tokens_V[0]), int(tokens_V[-1])
        in_order = torch.equal(tokens_V, torch.arange(first, first + len(tokens_V)))
        self._visual = slice(first, last + 1) if in_order else None
        self.facts = self._facts(side)
        self.eval()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, dtype: str = "float32", device: torch.device | None = None
    ) -> Self:
        """Load a checkpoint in the Hub format; ``load_backbone`` calls this.

        Raises:
            UserError: files are missing or unreadable, or weights do not fit the configuration.
        """
        if isinstance(name_or_path, Path):
            check_files(name_or_path)
        with processor_from(name_or_path):
            processor = Emu3Processor.from_pretrained(name_or_path)
        model = load_weights(Emu3ForConditionalGeneration, name_or_path, dtype)
        return cls(model.to(device or torch.device("cpu")), processor).to(device)

    @property
    def emu3(self) -> Emu3ForConditionalGeneration:
        """The transformers model; with LoRA its linear layers are PEFT's, in place."""
        return cast(Emu3ForConditionalGeneration, self.base)

    def codebook(self) -> Tensor:
        """The vectors (V, E) that the decoder reads."""
        return self.emu3.model.vqmodel.quantize.embedding.weight

    def visual_rows(self, weight: Tensor) -> Tensor:
        """The rows (V, H) of an embedding or head that belong to image codes, in their order.

        A view where the vocabulary holds the codes in one piece, as that of the published models.
        """
        return weight[self.token_V] if self._visual is None else weight[self._visual]

    def _facts(self, side: int) -> BackboneFacts:
        config = cast(Emu3Config, self.emu3.config)
        return BackboneFacts(
            family="emu3",
            image_size=side,
            num_image_tokens=self.layout.num_image_tokens,
            hidden_size=int(config.text_config.hidden_size),
            codebook_size=len(self.codebook()),
            lora_targets=LORA_TARGETS,
            frozen_parts=FROZEN_PARTS,
            dtype=self.dtype,
            num_parameters=sum(p.numel() for p in self.emu3.parameters()),
        )


def _pixels(image_processor: Any, side: int) -> PixelTwin:
    """Squares of one side by the processor's bicubic resize, mean and deviation.

    The processor keeps the shape of a picture and lays out another grid for each; a batch of one
    grid needs squares, so others are padded with mid-grey.
    """
    if int(image_processor.resample) != int(Image.Resampling.BICUBIC):
        raise UserError(
            f"image processor resamples with mode {image_processor.resample}; only bicubic (3) "
            "has a differentiable twin: set 'resample': 3 in its configuration"
        )
    if not image_processor.do_normalize:
        return square_pixels(side, [0.0] * 3, [1.0] * 3)
    return square_pixels(side, list(image_processor.image_mean), list(image_processor.image_std))


def _image_tokens(config: Emu3Config, codes: int) -> Tensor:
    """Vocabulary id of each of the image tokenizer's codes, by ``vocabulary_map``."""
    found = {
        int(name.removeprefix("<|visual token ").removesuffix("|>")): token
        for name, token in (config.vocabulary_map or {}).items()
        if name.startswith("<|visual token ")
    }
    if sorted(found) != list(range(codes)):
        raise UserError(
            f"vocabulary_map in config.json names {len(found)} image tokens, the image tokenizer "
            f"has {codes} codes; download or convert the checkpoint again"
        )
    return torch.tensor([found[code] for code in range(codes)])
