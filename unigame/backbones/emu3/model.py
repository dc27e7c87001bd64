"""Emu3 behind the backbone contract, on transformers' own classes.

A picture is a grid of codes of a VQ tokenizer in the text itself (``EarlyFusionBackbone``), with a
token at the end of each row. LoRA sits on the language model; tokenizer, embeddings and head are
frozen.

The tokenizer is made for video. The class repeats a picture four times, encodes the four frames,
and of the four that it decodes keeps the first. Here (``encode``, ``decode``) the layers that see
one frame at a time get one frame: the same numbers for a quarter of the work and memory.

Shape suffixes: see ``base.py``; further M = B*K rows, E code width, T tokens fed at once, h side of
a picture's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import Emu3ForConditionalGeneration, Emu3Processor

from unigame.backbones.base import PromptTokens
from unigame.backbones.common.autoregressive import EarlyFusionBackbone, image_tokens
from unigame.backbones.common.layout import PaddedTokens
from unigame.backbones.common.pixels import PixelTwin, require_resampling, square_pixels
from unigame.backbones.emu3.layout import Emu3Layout, picture_side
from unigame.errors import UserError

_CODE = "<|visual token "


class Emu3Backbone(EarlyFusionBackbone):
    """A frozen Emu3.

    Args:
        model: any model of the family; it is frozen here and used in place.
        processor: its processor, with a chat template.

    Raises:
        UserError: model and processor do not belong together, or the processor resizes in a way
            that has no differentiable twin.
    """

    frozen_parts = ("vqmodel", "lm_head")
    language_name = "text_model"
    layout: Emu3Layout
    max_images = 2  # of 4,096 tokens each, in the 9,216 that the published models were trained with
    negative_prompt = ""
    """The text of the unconditional branch under guidance."""

    def __init__(self, model: Emu3ForConditionalGeneration, processor: Emu3Processor) -> None:
        patch = int(model.model.vqmodel.vision_spatial_factor)
        if patch != processor.downsample_ratio:
            raise UserError(
                f"the model's image tokenizer makes one code of {patch} px, its processor counts "
                f"{processor.downsample_ratio} px; load both from the same checkpoint"
            )
        super().__init__(model, processor, *layout_and_pixels(processor))
        for layer in self.language_model.layers:
            layer.dropout.p = 0.0  # set from attention_dropout, which HubModel has switched off
        named = {
            int(name.removeprefix(_CODE).removesuffix("|>")): token
            for name, token in (model.config.vocabulary_map or {}).items()
            if name.startswith(_CODE)
        }
        self.set_tokens(image_tokens(named, len(self.codebook())))
        self.facts = self._facts("emu3")
        self.eval()

    @property
    def emu3(self) -> Emu3ForConditionalGeneration:
        """The transformers model; with LoRA its linear layers are PEFT's, in place."""
        return cast(Emu3ForConditionalGeneration, self.base)

    def picture_ids(self, codes_BN: Tensor) -> Tensor:
        # Nothing follows the last code: it and its row end predict no code.
        return self.layout.grid_ids(self.token_V[codes_BN])[:, :-2]

    def image_states(
        self, prompts: Sequence[PromptTokens], codes_BN: Tensor, read_BNH: Tensor | None = None
    ) -> Tensor:
        states_BLH = super().image_states(prompts, codes_BN, read_BNH)
        return states_BLH[:, self.layout.predicting().to(self.device)]

    def drawing_rows(self, prompts: Sequence[PromptTokens], guided: bool) -> PaddedTokens:
        rows = [prompt.ids for prompt in prompts]
        if guided:
            rows += [self.preprocessor.prompt(self.negative_prompt).ids] * len(prompts)
        return self.layout.pad(rows, "left", self.device)

    def feed_codes(self, codes_B1: Tensor, count: int) -> Tensor:
        tokens_BT = self.token_V[codes_B1]
        if count % self.layout.grid == 0:
            tokens_BT = F.pad(tokens_BT, (0, 1), value=self.layout.row_end_id)
        return self.emu3.get_input_embeddings()(tokens_BT)

    def _encode(self, pixels_B3SS: Tensor) -> Tensor:
        return encode(self.emu3.model.vqmodel, pixels_B3SS)

    def _decode(self, vectors_MNE: Tensor) -> Tensor:
        return decode(self.emu3.model.vqmodel, vectors_MNE, self.layout.grid)


def layout_and_pixels(processor: Emu3Processor) -> tuple[Emu3Layout, PixelTwin]:
    """How texts and pictures are read, by the processor alone.

    Raises:
        UserError: the processor lacks what they need, or resizes in a way that has no twin.
    """
    side = picture_side(processor)
    layout = Emu3Layout(processor, side // int(processor.downsample_ratio))
    return layout, _pixels(processor.image_processor, side)


def _pixels(image_processor: Any, side: int) -> PixelTwin:
    """Squares of one side by the processor's bicubic resize, mean and deviation.

    The processor keeps the shape of a picture and lays out another grid for each; a batch of one
    grid needs squares, so others are padded with mid-grey.
    """
    require_resampling(image_processor, Image.Resampling.BICUBIC)
    if not image_processor.do_normalize:
        return square_pixels(side, [0.0] * 3, [1.0] * 3)
    return square_pixels(side, list(image_processor.image_mean), list(image_processor.image_std))


# ---- the VQ tokenizer for still pictures ---------------------------------------------------------
def encode(vq: Any, pixels_B3SS: Tensor) -> Tensor:
    """Normalised pixels -> latents (B, N, E) before quantisation, row by row. Differentiable."""
    encoder = vq.encoder
    hidden = encoder.conv_in(pixels_B3SS)
    hidden = encoder.middle_block(encoder.down_block(hidden))
    hidden = _swish(encoder.norm_out(hidden))
    # The convolutions over time see the four frames that the class makes of a picture.
    frames = vq.config.temporal_downsample_factor
    hidden = encoder.conv_out(hidden).unsqueeze(2).expand(-1, -1, frames, -1, -1)
    for conv in encoder.time_conv:
        hidden = _swish(conv(hidden))
    for layer in encoder.time_res_stack:
        hidden = layer(hidden)
    return vq.quant_conv(hidden).squeeze(2).flatten(2).transpose(1, 2)


def decode(vq: Any, vectors_BNE: Tensor, grid: int) -> Tensor:
    """Codebook vectors of grid x grid codes, row by row -> normalised pixels. Differentiable."""
    decoder = vq.decoder
    quant_BE1hh = vectors_BNE.transpose(1, 2).unflatten(2, (1, grid, grid))
    hidden = torch.cat([vq.post_quant_conv(quant_BE1hh), quant_BE1hh])
    for layer in decoder.time_res_stack:
        hidden = layer(hidden)
    for conv in decoder.time_conv:
        hidden = _swish(conv(hidden))
    hidden, quant = hidden[:, :, 0].chunk(2)
    hidden = decoder.middle_block(decoder.conv_in(hidden), quant)
    hidden = _swish(decoder.norm_out(decoder.up_block(hidden, quant), quant))
    return decoder.conv_out(hidden)


def _swish(hidden: Tensor) -> Tensor:
    return hidden * torch.sigmoid(hidden)
