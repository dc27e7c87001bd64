"""The figures of a composed model: language model, eyes, connector, denoiser and VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unigame.backbones.common.counting import (
    count,
    count_lora,
    count_packable,
    leaf,
    on_meta,
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
    notes = ["of denoising, blocks that checkpointing recomputes one by one"]
    if experts > 1:
        notes.append(f"what the {experts} experts of a token keep beyond a dense MLP of their size")
    return ModelSize(
        name=name,
        parameters=precise + count(language) + count(eyes),
        float32_parameters=precise,
        packable_parameters=count_packable(language, _name_of(language, language.get_decoder())),
        lora_parameters=count_lora(language.get_decoder()),
        hidden_size=parts.hidden_size,
        mlp_size=int(text.intermediate_size) * experts,
        layers=int(text.num_hidden_layers),
        image_tokens=reader.num_tokens,
        vision_hidden=int(vision.hidden_size),
        vision_layers=int(getattr(vision, "num_hidden_layers", None) or vision.depth),
        vision_tokens=(reader.side // int(vision.patch_size)) ** 2,
        drawing=_redrawing(config, parts),
        notes=tuple(notes),
    )


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


def _redrawing(config: ComposedConfig, parts: Parts) -> dict[Dtype, PictureBytes]:
    """What redrawing one picture keeps: all denoising steps, then the VAE; float32 on any base.

    Checkpointing recomputes the denoiser block by block, and the VAE in one piece.
    """
    side, queries = parts.latent_size, config.connector.num_queries
    shape = (1, int(parts.vae["latent_channels"]), side, side)

    def drawer(checkpointing: bool = False) -> nn.ModuleDict:
        branch = _branch(config, parts)
        denoiser: Any = branch.denoiser
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        connector = Connector(parts.hidden_size, config.connector)
        return nn.ModuleDict({"connector": connector, "branch": branch})

    def denoise(model: Any) -> Tensor:
        own, noise = leaf(*shape).detach(), leaf(*shape).detach()
        condition_BNW = model["connector"](leaf(1, queries, parts.hidden_size))
        draw = config.draw
        return model["branch"].redraw(own, condition_BNW, noise, draw.strength, draw.steps)

    def decode(model: Any) -> Tensor:
        return model["branch"].decode(leaf(*shape))

    steps, held = saved_bytes(drawer, denoise), saved_bytes(lambda: drawer(True), denoise)
    pixels = saved_bytes(drawer, decode)
    found = PictureBytes(whole=float(steps + pixels), held=float(held), recomputed=float(pixels))
    return dict.fromkeys(DTYPES, found)
