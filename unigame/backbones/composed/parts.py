"""The parts of a composed model: which are supported, and do they fit each other?

Every check reads configurations only (a few kB each), so that a combination that cannot work ends
in one line before gigabytes are loaded or downloaded.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unigame.backbones.composed.config import ComposedConfig
from unigame.backbones.composed.vision import ENCODERS, VLMS
from unigame.backbones.foreign import hub_refusal, no_config
from unigame.backbones.model_files import (
    check_json_files,
    check_numbers,
    loading_from,
    read_json,
)
from unigame.errors import UserError

SETTINGS_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.model.v*",  # Mistral's
    "spiece.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
"""What a language model is read with, by name: a folder of this machine holds other files too, such
as a trainer's state or someone's data, and a merged model is published."""

UNETS, DITS = ("UNet2DConditionModel",), ("SanaTransformer2DModel", "PixArtTransformer2DModel")
VAES = ("AutoencoderKL", "AutoencoderDC")
# Models that change the output of their head in code of their own; ours would leave it out.
_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class Parts:
    """The configurations of all parts, found to fit each other.

    Attributes:
        language: transformers config of the VLM or LLM.
        encoder: transformers config of the separate vision encoder; None for a VLM.
        denoiser: diffusers config of the denoiser, ``_class_name`` included.
        denoiser_folder: its subfolder in the pipeline, ``unet`` or ``transformer``.
        vae: diffusers config of the VAE.
        scheduler: diffusers config of the pipeline's scheduler.
        hidden_size: width of the language model (H).
        latent_size: side of the latent.
    """

    language: Any
    encoder: Any
    denoiser: dict[str, Any]
    denoiser_folder: str
    vae: dict[str, Any]
    scheduler: dict[str, Any]
    hidden_size: int
    latent_size: int

    @property
    def feature_size(self) -> int | None:
        """D of the separate vision encoder, for the projector; None for a VLM."""
        return None if self.encoder is None else int(self.encoder.hidden_size)


def require_diffusers() -> None:
    """Composed models draw by diffusers, an optional extra.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("diffusers") is None:
        raise UserError(
            "a composed model draws by the library diffusers, which is not installed; "
            "install it: pip install 'unigame[composed]'"
        )


def check_parts(config: ComposedConfig) -> Parts:
    """Read the configuration of every part and check that they go together.

    Raises:
        UserError: diffusers is missing, a part cannot be had (gated, misspelt, offline), is of a
            kind that is not supported, or does not fit the others.
    """
    require_diffusers()
    language, encoder = _language(config), None
    if config.vision_encoder is not None:
        encoder = _encoder(config.vision_encoder)
    folder, denoiser = _denoiser(config)
    vae = (
        _read_json(config.denoiser, "config.json", "vae")
        if config.vae is None
        else _read_json(config.vae, "config.json")
    )
    width = conditioning_width(denoiser)
    if width != config.connector.width:
        raise UserError(
            f"the connector gives a conditioning of width {config.connector.width}, denoiser "
            f"{config.denoiser!r} reads {width}; compose the model anew for this denoiser"
        )
    latent_size = _check_vae(config, denoiser, vae)
    return Parts(
        language=language,
        encoder=encoder,
        denoiser=denoiser,
        denoiser_folder=folder,
        vae=vae,
        scheduler=_read_json(config.denoiser, "scheduler_config.json", "scheduler"),
        hidden_size=int(language.get_text_config().hidden_size),
        latent_size=latent_size,
    )


def denoiser_width(config: ComposedConfig) -> int:
    """W of the denoiser that a configuration names; raises as ``check_parts`` does."""
    require_diffusers()
    return conditioning_width(_denoiser(config)[1])


def conditioning_width(denoiser: dict[str, Any]) -> int:
    """W, the width of what a denoiser's cross-attention reads."""
    key = "cross_attention_dim" if denoiser["_class_name"] in UNETS else "caption_channels"
    return int(denoiser[key])


# ---- checks ------------------------------------------------------------------------------------
def _language(config: ComposedConfig) -> Any:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    found = auto_config(config.language, "language")
    kind = found.model_type
    if kind in VLMS:
        if config.vision_encoder is not None:
            raise UserError(
                f"language {config.language!r} is a {kind} model, which has eyes of its own; leave "
                f"out vision_encoder={config.vision_encoder!r}, or give a text-only LLM"
            )
    elif kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(
            f"language {config.language!r} is a VLM of type {kind!r}, whose way of merging images "
            f"is not known here; supported: {', '.join(sorted(VLMS))}, or a text-only LLM with a "
            "vision_encoder"
        )
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"language {config.language!r} is a model of type {kind!r}, neither a VLM nor a causal "
            "language model; give one of these"
        )
    elif config.vision_encoder is None:
        raise UserError(
            f"language {config.language!r} ({kind}) is text-only and cannot see; set "
            "vision_encoder to a SigLIP or CLIP such as google/siglip2-base-patch16-384"
        )
    text = found.get_text_config()
    for name in _LOGIT_CHANGES:
        if getattr(text, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"language {config.language!r} ({kind}) changes its logits by {name}, which is not "
                "supported; use a model of the Qwen, Llama, Mistral or GPT-OSS families"
            )
    return found


def _encoder(reference: str) -> Any:
    config = auto_config(reference, "vision_encoder")
    if config.model_type not in ENCODERS:
        raise UserError(
            f"vision_encoder {reference!r} is a model of type {config.model_type!r}; supported: "
            f"{', '.join(sorted(ENCODERS))} (SigLIP 2 with a fixed resolution is a 'siglip')"
        )
    return getattr(config, "vision_config", config)


def _denoiser(config: ComposedConfig) -> tuple[str, dict[str, Any]]:
    """Subfolder and configuration of a pipeline's denoiser, of a kind that is supported."""
    index = _read_json(config.denoiser, "model_index.json")
    folder = next((name for name in ("unet", "transformer") if index.get(name)), None)
    supported = ", ".join((*UNETS, *DITS))
    if folder is None:
        raise UserError(
            f"denoiser {config.denoiser!r} is a pipeline without a unet or transformer; give one "
            f"with a {supported}"
        )
    denoiser = _read_json(config.denoiser, "config.json", folder)
    kind = denoiser.get("_class_name")
    if kind not in (*UNETS, *DITS):
        raise UserError(f"denoiser {config.denoiser!r} is a {kind}; supported: {supported}")
    wanted = ("addition_embed_type", "class_embed_type", "guidance_embeds")
    more = [name for name in wanted if denoiser.get(name)]
    if more:
        raise UserError(
            f"denoiser {config.denoiser!r} wants further conditions ({more[0]}="
            f"{denoiser[more[0]]!r}) that a connector does not give; use one that reads text "
            "embeddings only, such as Stable Diffusion 1.5 or 2.1, SANA, PixArt"
        )
    return folder, denoiser


def _check_vae(config: ComposedConfig, denoiser: dict[str, Any], vae: dict[str, Any]) -> int:
    name, kind = config.vae or config.denoiser, vae.get("_class_name")
    if kind not in VAES:
        raise UserError(f"the VAE of {name!r} is a {kind}; supported: {', '.join(VAES)}")
    if vae.get("latent_channels") != denoiser.get("in_channels"):
        raise UserError(
            f"the VAE of {name!r} makes latents of {vae.get('latent_channels')} channels, denoiser "
            f"{config.denoiser!r} reads {denoiser.get('in_channels')}; give the VAE it was "
            "trained with (an inpainting model cannot be used)"
        )
    blocks = vae.get("block_out_channels") or vae["encoder_block_out_channels"]
    factor = 2 ** (len(blocks) - 1)
    halvings = len(denoiser["block_out_channels"]) - 1 if denoiser["_class_name"] in UNETS else 0
    step = factor * (2**halvings if halvings else int(denoiser.get("patch_size", 1)))
    if config.image_size % step:
        raise UserError(
            f"image_size={config.image_size} does not suit {config.denoiser!r}: it must be a "
            f"multiple of {step}"
        )
    if denoiser["_class_name"] == "PixArtTransformer2DModel":
        native = int(denoiser["sample_size"]) * factor
        if config.image_size != native:
            raise UserError(
                f"image_size={config.image_size}: {config.denoiser!r} has position tables for "
                f"{native} px only; set image_size={native}"
            )
    return config.image_size // factor


# ---- reading -----------------------------------------------------------------------------------
def auto_config(reference: str, what: str) -> Any:
    """The transformers configuration of a part; ``what`` names its role in errors."""
    from transformers import AutoConfig

    local = Path(reference).is_dir()
    if local and not (Path(reference) / "config.json").is_file():
        raise no_config(reference, Path(reference))
    if local:
        check_json_files(Path(reference))
        with loading_from(reference, ("config.json",), what):
            return AutoConfig.from_pretrained(reference)
    try:
        return AutoConfig.from_pretrained(reference)
    except Exception as error:
        raise hub_refusal(what, reference, "config.json", error) from error


def _read_json(reference: str, name: str, subfolder: str | None = None) -> dict[str, Any]:
    path = Path(reference)
    shown = name if subfolder is None else f"{subfolder}/{name}"
    if path.is_dir():
        file = path / (subfolder or "") / name
        if not file.is_file():
            raise UserError(
                f"{reference!r} has no {shown}; give a folder saved by a diffusers pipeline"
            )
    else:
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(reference, name, subfolder=subfolder))
        except (OSError, ValueError) as error:
            raise hub_refusal("image branch", reference, shown, error) from error
    content = read_json(file)
    check_numbers(content, file)
    return content


def copy_settings(reference: str, folder: Path) -> None:
    """The language model's own small files, such as its image processor's, for a copy of it."""
    if Path(reference).is_dir():
        place = Path(reference)
    else:
        from huggingface_hub import snapshot_download

        place = Path(snapshot_download(reference, allow_patterns=list(SETTINGS_FILES)))
    for pattern in SETTINGS_FILES:
        for file in place.glob(pattern):
            shutil.copyfile(file, folder / file.name)
