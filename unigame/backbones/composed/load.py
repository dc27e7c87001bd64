"""Loading a composed model, and making one: parts that fit, and a fresh connector beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.image_processing_base import ImageProcessingMixin

from unigame.backbones.base import Reading
from unigame.backbones.common.hub_model import load_weights, refuse_misfits, refuse_missing
from unigame.backbones.common.pixels import PixelTwin, square_pixels
from unigame.backbones.common.understanding import ends_of, reading_of
from unigame.backbones.composed.config import (
    CONFIG_FILE,
    CONNECTOR_FILE,
    ComposedConfig,
    read_config,
)
from unigame.backbones.composed.connector import TrainedParts
from unigame.backbones.composed.diffusion import ImageBranch, NoiseLevels
from unigame.backbones.composed.layout import ComposedLayout
from unigame.backbones.composed.model import ComposedBackbone
from unigame.backbones.composed.parts import Parts, auto_config, check_parts, denoiser_width
from unigame.backbones.composed.vision import ENCODERS, build_reader
from unigame.backbones.folder import check_weight_files
from unigame.backbones.model_files import loading_from, processor_from, read_json
from unigame.errors import UserError

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


def from_pretrained(
    name_or_path: str | Path, *, dtype: str = "float32", device: torch.device | None = None
) -> ComposedBackbone:
    """A folder (or Hub repository) with ``config.json`` and ``connector.safetensors``.

    Raises:
        UserError: see ``check_parts``; everything but the weights of the frozen parts is
            checked before any of them is read.
    """
    folder = _own_files(name_or_path, [CONFIG_FILE, CONNECTOR_FILE])
    config = read_config(folder)
    parts = check_parts(config)
    sizes = (parts.hidden_size, config.connector, parts.feature_size)
    with torch.device("meta"):  # a wrong size costs no memory
        TrainedParts(*sizes).check_file(folder)
    trained = TrainedParts(*sizes)
    reader = build_reader(parts.language, parts.encoder, config.vision_size, config.image_size)
    check_weights(config, parts)
    tokenizer = load_tokenizer(config.language)
    scheduler = ("scheduler/scheduler_config.json",)
    with loading_from(config.denoiser, scheduler, "scheduler"):
        levels = NoiseLevels(parts.scheduler)
        levels.scheduler(config.sample_steps, torch.device("cpu"))
    trained.load(folder)
    language = load_language(config, parts, dtype)
    encoder = load_encoder(config, next(language.parameters()).dtype)
    branch = ImageBranch(*load_image_branch(config, parts), levels, config.image_size)
    pixels = vision_pixels(config.vision_encoder or config.language, reader.side)
    backbone = ComposedBackbone(
        config,
        (int(parts.vae["latent_channels"]), parts.latent_size, parts.latent_size),
        language=language,
        encoder=encoder,
        branch=branch,
        trained=trained,
        tokenizer=tokenizer,
        reader=reader,
        vision_pixels=pixels,
    )
    return backbone.to(device or torch.device("cpu"))


def load_reading(name_or_path: str | Path) -> Reading:
    """How the model reads records; no weights are read.

    Raises:
        UserError: see ``check_parts``.
    """
    config = read_config(_own_files(name_or_path, [CONFIG_FILE]))
    parts = check_parts(config)
    reader = build_reader(parts.language, parts.encoder, config.vision_size, config.image_size)
    tokenizer = load_tokenizer(config.language)
    ends = ends_of(_generation_config(config.language, parts.language))
    layout = ComposedLayout(tokenizer, reader, config.connector.num_queries, ends)
    pixels = square_pixels(config.image_size)
    return reading_of(layout, pixels, parts.language, ComposedBackbone.max_images)


def _own_files(name_or_path: str | Path, names: list[str]) -> Path:
    """The folder; of a Hub repository, these files of it."""
    if isinstance(name_or_path, Path):
        return name_or_path
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name_or_path, allow_patterns=names))


def _generation_config(reference: str, config: Any) -> GenerationConfig:
    """As a loaded model has it: its own file, else what its configuration says."""
    try:
        return GenerationConfig.from_pretrained(reference)
    except OSError:
        return GenerationConfig.from_model_config(config)


def compose(
    folder: str | Path, config: ComposedConfig, *, seed: int = 0, fit_width: bool = True
) -> Path:
    """Make a composed model: check that the parts fit, and write a fresh connector beside them.

    ``fit_width`` sets ``connector.width`` to what the denoiser reads.

    Raises:
        UserError: see ``check_parts``; or the folder holds a model already.
    """
    folder = Path(folder)
    if (folder / CONFIG_FILE).exists():
        raise UserError(f"{str(folder)!r} holds a model already; give another folder")
    if fit_width:
        connector = replace(config.connector, width=denoiser_width(config))
        config = replace(config, connector=connector)
    parts = check_parts(config)
    build_reader(parts.language, parts.encoder, config.vision_size, config.image_size)
    folder.mkdir(parents=True, exist_ok=True)
    TrainedParts.initialised(parts.hidden_size, config.connector, parts.feature_size, seed).save(
        folder
    )
    config.save(folder)
    return folder


# ---- weights -------------------------------------------------------------------------------------
def check_weights(config: ComposedConfig, parts: Parts) -> None:
    """The weight files of every part that is a folder here are there and whole.

    Raises:
        UserError: names the first one that is not.
    """
    for reference in (config.language, config.vision_encoder):
        if reference is not None and Path(reference).is_dir():
            check_weight_files(Path(reference))
    vae = (config.denoiser, "vae") if config.vae is None else (config.vae, "")
    for reference, part in ((config.denoiser, parts.denoiser_folder), vae):
        if Path(reference).is_dir():
            check_weight_files(Path(reference) / part, DIFFUSERS_WEIGHTS)


def load_language(config: ComposedConfig, parts: Parts, dtype: str) -> nn.Module:
    """The VLM or LLM, all tensors present; float16 becomes bfloat16."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForCausalLM if config.vision_encoder else AutoModelForImageTextToText
    extra: dict[str, Any] = {}
    packed = getattr(parts.language, "quantization_config", None) or {}
    if packed.get("quant_method") == "mxfp4":  # GPT-OSS: its packed experts have no backward pass
        from transformers import Mxfp4Config

        extra["quantization_config"] = Mxfp4Config(dequantize=True)
    return cast(nn.Module, load_weights(kind, config.language, dtype, **extra))


def load_encoder(config: ComposedConfig, dtype: torch.dtype) -> nn.Module | None:
    """The separate vision encoder of a text-only LLM."""
    if config.vision_encoder is None:
        return None
    import transformers

    kind = getattr(transformers, ENCODERS[auto_config(config.vision_encoder, "").model_type])
    return cast(nn.Module, load_weights(kind, config.vision_encoder, dtype))


def load_image_branch(config: ComposedConfig, parts: Parts) -> tuple[nn.Module, nn.Module]:
    """Denoiser and VAE, float32: a bounded perturbation is smaller than bfloat16 resolves."""
    import diffusers

    denoiser_kind = getattr(diffusers, parts.denoiser["_class_name"])
    vae_kind = getattr(diffusers, parts.vae["_class_name"])
    folder = "vae" if config.vae is None else None
    denoiser = _load_diffusers(denoiser_kind, config.denoiser, parts.denoiser_folder)
    return denoiser, _load_diffusers(vae_kind, config.vae or config.denoiser, folder)


def _load_diffusers(kind: Any, reference: str, subfolder: str | None) -> nn.Module:
    from diffusers.utils import logging as diffusers_logging

    part = "" if subfolder is None else f"{subfolder}/"
    with loading_from(
        reference,
        (f"{part}config.json", f"{part}diffusion_pytorch_model.safetensors"),
        "image branch",
    ):
        diffusers_logging.set_verbosity_error()  # what it warns of is refused below
        model, info = kind.from_pretrained(
            reference,
            subfolder=subfolder,
            torch_dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    refuse_misfits(reference, model, info)
    refuse_missing(reference, info["missing_keys"])
    return cast(nn.Module, model)


# ---- pixels and words ----------------------------------------------------------------------------
def vision_pixels(reference: str, side: int) -> PixelTwin:
    """What the eyes read: ``side`` px with mean and deviation of their own image processor.

    Raises:
        UserError: the checkpoint has no image processor's configuration.
    """
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(reference)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{reference!r} has no preprocessor_config.json, which holds the mean and deviation "
            "of its pixels; save its image processor beside it"
        ) from error
    with loading_from(
        reference, ("preprocessor_config.json", "processor_config.json"), "image processor"
    ):
        settings = settings.get("image_processor", settings)
        mean, std = settings.get("image_mean"), settings.get("image_std")
        if not mean or not std:
            raise UserError(
                f"preprocessor_config.json of {reference!r} has no image_mean or no image_std, so "
                "pixels cannot be brought to the scale that the eyes know; download it again"
            )
        return square_pixels(side, mean, std)


def load_tokenizer(reference: str) -> Any:
    """The language model's tokenizer, with the chat template wherever it is kept.

    Raises:
        UserError: the checkpoint has no tokenizer.
    """
    from transformers import AutoTokenizer

    with processor_from(reference):
        tokenizer = AutoTokenizer.from_pretrained(reference)
    if not tokenizer.chat_template:
        tokenizer.chat_template = _processor_template(reference)
    return tokenizer


def _processor_template(reference: str) -> str | None:
    """Older VLM checkpoints keep the template in a file of their processor."""
    name = "chat_template.json"
    file = Path(reference) / name
    if not Path(reference).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            file = Path(hf_hub_download(reference, name))
        except (EntryNotFoundError, OSError):
            return None
    if not file.is_file():
        return None
    template = read_json(file).get("chat_template")
    return template if isinstance(template, str) else None
