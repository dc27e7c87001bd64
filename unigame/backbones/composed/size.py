"""The figures of a composed model: language model, eyes, connector, denoiser and VAE."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from unigame.backbones.common.counting import (
    count,
    count_layers,
    count_lora,
    count_packable,
    leaf,
    on_meta,
    saved_and_cast,
    saved_bytes,
)
from unigame.backbones.composed.config import ComposedConfig, read_config
from unigame.backbones.composed.connector import Connector, TrainedParts
from unigame.backbones.composed.diffusion import ImageBranch, NoiseLevels
from unigame.backbones.composed.parts import Parts, check_parts
from unigame.backbones.composed.vision import ENCODERS, build_reader
from unigame.backbones.memory import DTYPES, Dtype, ModelSize, PictureBytes


def size_of(name: str, file: Path, hub_id: str | None) -> ModelSize:
    """The size of the model that ``config.json`` describes. Reads no weights.

    Raises:
        UserError: see ``check_parts``.
    """
    config = read_config(file.parent)
    parts = check_parts(config)
    language, eyes = on_meta(lambda: _language(parts)), on_meta(lambda: _encoder(parts))
    trained = on_meta(lambda: TrainedParts(parts.hidden_size, config.connector, parts.feature_size))
    precise = count(trained) + count(on_meta(lambda: _branch(config, parts)))
    reader = build_reader(parts.language, parts.encoder, config.vision_size, config.image_size)
    text = parts.language.get_text_config()
    vision = parts.language.vision_config if parts.encoder is None else parts.encoder
    experts = int(getattr(text, "num_experts_per_tok", None) or 1)
    lora = count_lora(language.get_decoder())
    tower = reader.vision(SimpleNamespace(language=language, encoder=eyes))
    drawing, denoising = _picture_bytes(config, parts)
    notes = ["of denoising, blocks that checkpointing recomputes one by one"]
    if experts > 1:
        notes.append(f"what the {experts} experts of a token keep beyond a dense MLP of their size")
    return ModelSize(
        name=name,
        parameters=precise + count(language) + count(eyes),
        float32_parameters=precise,
        packable_parameters=count_packable(language, _name_of(language, language.get_decoder())),
        lora_parameters=sum(lora.values()),
        lora_layers=lora,
        parts={name: count(part) for name, part in trained.named_children()},
        layer_parameters=count_layers(language.get_decoder()),
        vision_layer_parameters=count_layers(tower),
        hidden_size=parts.hidden_size,
        mlp_size=int(text.intermediate_size) * experts,
        layers=int(text.num_hidden_layers),
        image_tokens=reader.num_tokens,
        vision_hidden=_width(vision),
        vision_layers=int(getattr(vision, "num_hidden_layers", None) or vision.depth),
        vision_tokens=(reader.side // int(vision.patch_size)) ** 2,
        drawing=drawing,
        denoising=denoising,
        notes=tuple(notes),
    )


def _width(vision: Any) -> int:
    """Of the vision tower's layers. Qwen2-VL alone calls the language model's ``hidden_size``."""
    return int(vision.embed_dim if vision.model_type.startswith("qwen2_vl") else vision.hidden_size)


def _name_of(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)


def _language(parts: Parts) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForImageTextToText if parts.encoder is None else AutoModelForCausalLM
    return kind.from_config(parts.language)


def _encoder(parts: Parts) -> nn.Module:
    import transformers

    if parts.encoder is None:
        return nn.Identity()
    kind: Any = getattr(transformers, ENCODERS[parts.encoder.model_type])
    return kind(parts.encoder)


def _branch(config: ComposedConfig, parts: Parts) -> ImageBranch:
    import diffusers

    denoiser = getattr(diffusers, parts.denoiser["_class_name"]).from_config(parts.denoiser)
    vae = getattr(diffusers, parts.vae["_class_name"]).from_config(parts.vae)
    return ImageBranch(denoiser, vae, NoiseLevels(parts.scheduler), config.image_size)


def _picture_bytes(
    config: ComposedConfig, parts: Parts
) -> tuple[dict[Dtype, PictureBytes], dict[Dtype, PictureBytes]]:
    """What one picture keeps that is redrawn, and one whose caption is learned.

    Redrawing is all denoising steps, then the VAE, in float32 on any base; the caption loss one
    pass of the denoiser, under autocast on a bfloat16 base. Checkpointing recomputes the denoiser
    block by block, and the VAE in one piece.
    """
    side, queries = parts.latent_size, config.connector.num_queries
    shape = (1, int(parts.vae["latent_channels"]), side, side)
    draw = config.draw

    def drawer(checkpointing: bool = False) -> nn.ModuleDict:
        branch = _branch(config, parts)
        denoiser: Any = branch.denoiser
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        connector = Connector(parts.hidden_size, config.connector)
        return nn.ModuleDict({"connector": connector, "branch": branch})

    def recomputing() -> nn.ModuleDict:
        return drawer(checkpointing=True)

    def denoise(model: Any) -> Tensor:
        own, noise = leaf(*shape).detach(), leaf(*shape).detach()
        condition_BNW = model["connector"](leaf(1, queries, parts.hidden_size))
        return model["branch"].redraw(own, condition_BNW, noise, draw.strength, draw.steps)

    def learn(model: Any) -> Tensor:
        own, noise = leaf(*shape).detach(), leaf(*shape).detach()
        condition_BNW = model["connector"](leaf(1, queries, parts.hidden_size))
        level_B = torch.full((1,), draw.strength)
        return model["branch"].prediction_loss(own, condition_BNW, noise, level_B)

    def decode(model: Any) -> Tensor:
        return model["branch"].decode(leaf(*shape))

    steps, held = saved_bytes(drawer, denoise), saved_bytes(recomputing, denoise)
    pixels = saved_bytes(drawer, decode)
    redrawn = PictureBytes(whole=float(steps + pixels), held=float(held), recomputed=float(pixels))
    full = PictureBytes(whole=steps / draw.steps, held=held / draw.steps)  # each step is one pass
    less, cast = saved_and_cast(drawer, learn, "bfloat16")
    less_held, held_cast = saved_and_cast(recomputing, learn, "bfloat16")
    half = PictureBytes(
        whole=float(less), held=float(less_held), cast=float(cast), held_cast=float(held_cast)
    )
    return dict.fromkeys(DTYPES, redrawn), {"float32": full, "bfloat16": half}
