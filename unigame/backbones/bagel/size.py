"""What a BAGEL costs: parameters, and what drawing keeps for the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unigame.backbones.bagel.configuration import BagelConfig
from unigame.backbones.bagel.files import (
    LLM_CONFIG,
    VAE_WEIGHTS,
    VIT_CONFIG,
    WEIGHTS,
    read_config,
    shapes_in,
)
from unigame.backbones.bagel.language import GEN
from unigame.backbones.bagel.model import pictures_at_once
from unigame.backbones.bagel.modeling import BagelModel
from unigame.backbones.bagel.vae import build_vae
from unigame.backbones.common.counting import (
    convolutions,
    count,
    count_layers,
    count_packable,
    leaf,
    on_meta,
)
from unigame.backbones.folder import open_safetensors
from unigame.backbones.memory import LORA_RANK, ModelSize


def size_of(name: str, file: Path, hub_id: str | None) -> ModelSize:
    """From the configurations, and the headers of weight files in a folder; no weight is read."""
    if hub_id is not None:
        from huggingface_hub import hf_hub_download

        folders = {Path(hf_hub_download(hub_id, part)).parent for part in (LLM_CONFIG, VIT_CONFIG)}
        return size_of_config(name, read_config(folders.pop()))
    folder = file.parent
    shapes = [shapes_in(open_safetensors(folder / part)) for part in (WEIGHTS, VAE_WEIGHTS)]
    return size_of_config(name, read_config(folder, *shapes))


def size_of_config(name: str, config: BagelConfig) -> ModelSize:
    """Eyes read; the image autoencoder draws a few pictures at a time, float32 on any base."""
    model = on_meta(lambda: BagelModel(config))
    text, vision = config.llm_config, config.vit_config

    def draw(vae: Any) -> Tensor:
        return vae.decode(leaf(1, *config.latent_shape)).sample

    lora = _count_lora(model)
    return ModelSize(
        name=name,
        parameters=count(model),
        float32_parameters=count(model.vae),
        packable_parameters=count_packable(model, "language_model"),
        lora_parameters=sum(added for name, added in lora.items() if GEN not in name),
        lora_layers=lora,
        layer_parameters=count_layers(model.decoder),
        vision_layer_parameters=count_layers(model.eyes),
        hidden_size=text.hidden_size,
        mlp_size=text.intermediate_size,
        layers=text.num_hidden_layers,
        image_tokens=max(config.num_image_tokens, config.num_latents),
        vision_hidden=vision.hidden_size,
        vision_layers=vision.num_hidden_layers - 1,
        vision_tokens=config.num_image_tokens,
        pictures_at_once=pictures_at_once(*config.image_shape),
        drawing=convolutions(lambda: build_vae(config.vae_config), draw, half=False),
    )


def published_config() -> BagelConfig:
    """The shapes of BAGEL-7B-MoT, so that nothing need be downloaded."""
    return BagelConfig(
        llm_config={
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        vit_config={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 980,
            "patch_size": 14,
        },
    )


def _count_lora(model: BagelModel) -> dict[str, int]:
    """Weights of LoRA on both experts, by name: rank x (inputs + outputs) of each layer."""
    found: dict[str, int] = {}
    for name, part in model.decoder.layers.named_modules():
        if isinstance(part, nn.Linear):
            *_, owner, last = name.split(".")
            target = f"{owner}.{last}" if owner.endswith(GEN) else last
            added = LORA_RANK * (part.in_features + part.out_features)
            found[target] = found.get(target, 0) + added
    return found
