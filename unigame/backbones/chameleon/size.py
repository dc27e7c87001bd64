"""What a Chameleon with its image decoder costs: parameters, and what its VQGAN keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import ChameleonConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from unigame.backbones.chameleon.load import ChameleonVQDecoder, DrawingChameleon
from unigame.backbones.common.autoregressive import PIXELS_AT_ONCE
from unigame.backbones.common.counting import (
    convolutions,
    count,
    count_lora,
    count_packable,
    leaf,
    on_meta,
)
from unigame.backbones.folder import check_files
from unigame.backbones.memory import ModelSize


def size_of(name: str, file: Path, hub_id: str | None) -> ModelSize:
    """From ``config.json`` alone: its VQGAN reads and draws, a few pictures at a time."""
    if hub_id is None:
        check_files(file.parent)
    config = ChameleonConfig.from_json_file(file)
    vq = config.vq_config
    model = on_meta(lambda: DrawingChameleon(config))
    side = int(vq.resolution)
    grid = side // 2 ** (len(vq.channel_multiplier) - 1)

    def tokenizer() -> Any:
        vqmodel = ChameleonVQVAE(vq)
        vqmodel.decoder = ChameleonVQDecoder(vq)
        return vqmodel

    def draw(vqmodel: Any) -> Tensor:
        return vqmodel.decoder(vqmodel.post_quant_conv(leaf(1, vq.embed_dim, grid, grid)))

    def read(vqmodel: Any) -> Tensor:
        return vqmodel.quant_conv(vqmodel.encoder(leaf(1, 3, side, side)))

    lora = count_lora(model.model.layers)
    return ModelSize(
        name=name,
        parameters=count(model),
        float32_parameters=count(model.model.vqmodel),
        packable_parameters=count_packable(model, "layers"),
        lora_parameters=sum(lora.values()),
        lora_layers=lora,
        layer_parameters=count(model.model.layers),
        hidden_size=config.hidden_size,
        mlp_size=config.intermediate_size,
        layers=config.num_hidden_layers,
        image_tokens=grid**2,
        codebook_size=vq.num_embeddings,
        drawing=convolutions(tokenizer, draw),
        reading=convolutions(tokenizer, read, half=False),
        reads_codes=True,
        pictures_at_once=max(1, PIXELS_AT_ONCE // side**2),
    )
