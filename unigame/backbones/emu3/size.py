"""What an Emu3 costs: parameters, and what its image tokenizer keeps for the backward pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Emu3Config, Emu3ForConditionalGeneration
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

from unigame.backbones.common.autoregressive import PIXELS_AT_ONCE
from unigame.backbones.common.counting import (
    convolutions,
    count,
    count_layers,
    count_lora,
    count_packable,
    leaf,
    on_meta,
)
from unigame.backbones.emu3.model import decode, encode
from unigame.backbones.folder import check_files
from unigame.backbones.memory import ModelSize
from unigame.errors import UserError

_PIXELS = 512 * 512  # transformers' own default for the smallest picture


def size_of(name: str, file: Path, hub_id: str | None) -> ModelSize:
    """From ``config.json`` and the image processor's settings, which say how large pictures are.

    Raises:
        UserError: the settings cannot be read.
    """
    if hub_id is None:
        check_files(file.parent)
    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(hub_id or str(file.parent))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name!r}: the settings of its image processor cannot be read, and they say how "
            "large its pictures are; download the checkpoint again"
        ) from error
    settings = found.get("image_processor", found)
    pixels = int(settings.get("min_pixels") or _PIXELS)
    return size_of_config(name, Emu3Config.from_json_file(file), pixels)


def size_of_config(name: str, config: Emu3Config, min_pixels: int = _PIXELS) -> ModelSize:
    """Its image tokenizer reads and draws, a few pictures at a time.

    Args:
        name: what to call it.
        config: of the model.
        min_pixels: of its image processor; their root is the side of its pictures.
    """
    text, vq = config.text_config, config.vq_config
    model = on_meta(lambda: Emu3ForConditionalGeneration(config))
    patch = int(model.model.vqmodel.vision_spatial_factor)
    grid = math.ceil(math.sqrt(min_pixels) / patch)
    side = grid * patch

    def draw(vqmodel: Any) -> Tensor:
        return decode(vqmodel, leaf(1, grid**2, vq.embed_dim), grid)

    def read(vqmodel: Any) -> Tensor:
        return encode(vqmodel, leaf(1, 3, side, side))

    lora = count_lora(model.model.text_model)
    return ModelSize(
        name=name,
        parameters=count(model),
        float32_parameters=count(model.model.vqmodel),
        packable_parameters=count_packable(model, "text_model"),
        lora_parameters=sum(lora.values()),
        lora_layers=lora,
        layer_parameters=count_layers(model.model.text_model),
        hidden_size=text.hidden_size,
        mlp_size=text.intermediate_size,
        layers=text.num_hidden_layers,
        image_tokens=grid**2,
        codebook_size=vq.codebook_size,
        drawing=convolutions(lambda: Emu3VQVAE(vq), draw),
        reading=convolutions(lambda: Emu3VQVAE(vq), read, half=False),
        reads_codes=True,
        pictures_at_once=max(1, PIXELS_AT_ONCE // side**2),
    )
