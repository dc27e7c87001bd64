"""What a Janus costs: parameters, and what drawing keeps for the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration
from transformers.models.janus.modeling_janus import JanusVQVAE

from unigame.backbones.common.counting import (
    convolutions,
    count,
    count_layers,
    count_lora,
    count_packable,
    leaf,
    on_meta,
)
from unigame.backbones.common.fast import lean_decoder
from unigame.backbones.folder import check_files
from unigame.backbones.memory import ModelSize


def size_of(name: str, file: Path, hub_id: str | None) -> ModelSize:
    """From ``config.json`` alone."""
    if hub_id is None:
        check_files(file.parent)
    return size_of_config(name, JanusConfig.from_json_file(file))


def size_of_config(name: str, config: JanusConfig) -> ModelSize:
    """A vision tower reads, a VQ decoder draws all pictures at once."""
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    model = on_meta(lambda: JanusForConditionalGeneration(config))
    side = vision.image_size // vision.patch_size

    def draw(vqmodel: Any) -> Tensor:
        latents = vqmodel.post_quant_conv(leaf(1, vq.embed_dim, side, side))
        return lean_decoder.decode(vqmodel.decoder, latents)

    lora = count_lora(model.model.language_model)
    return ModelSize(
        name=name,
        parameters=count(model),
        float32_parameters=count(model.model.vqmodel),
        packable_parameters=count_packable(model, "language_model"),
        lora_parameters=sum(lora.values()),
        lora_layers=lora,
        layer_parameters=count_layers(model.model.language_model),
        vision_layer_parameters=count_layers(model.model.vision_model),
        hidden_size=text.hidden_size,
        mlp_size=text.intermediate_size,
        layers=text.num_hidden_layers,
        image_tokens=side**2,
        codebook_size=vq.num_embeddings,
        vision_hidden=vision.hidden_size,
        vision_layers=vision.num_hidden_layers,
        vision_tokens=side**2,
        drawing=convolutions(lambda: JanusVQVAE(vq), draw),
    )


def published() -> list[ModelSize]:
    """The published Janus-Pro checkpoints."""
    return [
        size_of_config("Janus-Pro-1B", pro_config("1B")),
        size_of_config("Janus-Pro-7B", pro_config("7B")),
    ]


def pro_config(size: Literal["1B", "7B"]) -> JanusConfig:
    """The shapes of the published Janus-Pro checkpoints, so that nothing need be downloaded."""
    hidden, mlp, layers, heads = {
        "1B": (2048, 5632, 24, 16),
        "7B": (4096, 11008, 30, 32),
    }[size]
    text = {
        "model_type": "llama",
        "vocab_size": 102400,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "tie_word_embeddings": False,
    }
    return JanusConfig(
        text_config=text,
        vision_config={"projection_dim": hidden},
        vq_config={"projection_dim": hidden, "image_token_embed_dim": hidden},
        tie_word_embeddings=False,
    )
