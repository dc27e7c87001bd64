"""The figures of a checkpoint that memory depends on, for every built-in family, without weights.

Parameters are counted on the model's own classes, built on the meta device. What draws a picture,
and an image tokenizer that reads one, run once on fake tensors while what autograd saves is added
up. A Hub id costs the download of a few configuration files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unigame.cli.memory import ModelSize
from unigame.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import ChameleonConfig, Emu3Config, JanusConfig

_EMU3_PIXELS = 512 * 512  # transformers' own default for the smallest picture


def size_of(name: str) -> ModelSize:
    """The size of a checkpoint from its configurations alone.

    Raises:
        UserError: it is no model of a built-in family, or files of it are missing.
    """
    from unigame.backbones.folder import (
        check_files,
        fetch_config,
        find_checkpoint,
        read_model_type,
    )
    from unigame.backbones.model_files import loading_from
    from unigame.backbones.registry import available_backbones

    checkpoint = find_checkpoint(name)
    hub_id = None if isinstance(checkpoint, Path) else checkpoint
    file = checkpoint / "config.json" if isinstance(checkpoint, Path) else fetch_config(checkpoint)
    model_type = read_model_type(file, available_backbones(), hub_id)
    if model_type not in _READERS:
        raise UserError(
            f"{name!r} is of family {model_type!r}, which comes from a plug-in; doctor can "
            f"estimate {', '.join(sorted(_READERS))} only"
        )
    if isinstance(checkpoint, Path) and model_type != "unigame_composed":
        check_files(checkpoint)
    with loading_from(name, ("config.json",)):
        return _READERS[model_type](name, file, hub_id)


# ---- families ------------------------------------------------------------------------------------
def janus_size(name: str, config: JanusConfig) -> ModelSize:
    """Janus: a vision tower reads, a VQ decoder draws all pictures at once."""
    from transformers import JanusForConditionalGeneration
    from transformers.models.janus.modeling_janus import JanusVQVAE

    from unigame.backbones.common.fast import lean_decoder
    from unigame.cli.counting import convolutions, count, count_lora, leaf, on_meta

    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    model = on_meta(lambda: JanusForConditionalGeneration(config))
    side = vision.image_size // vision.patch_size

    def draw(vqmodel: Any) -> Tensor:
        latents = vqmodel.post_quant_conv(leaf(1, vq.embed_dim, side, side))
        return lean_decoder.decode(vqmodel.decoder, latents)

    return ModelSize(
        name=name,
        parameters=count(model),
        float32_parameters=count(model.model.vqmodel),
        lora_parameters=count_lora(model.model.language_model),
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


def emu3_size(name: str, config: Emu3Config, min_pixels: int = _EMU3_PIXELS) -> ModelSize:
    """Emu3: its image tokenizer reads and draws, a few pictures at a time.

    Args:
        name: what to call it.
        config: of the model.
        min_pixels: of its image processor; their root is the side of its pictures.
    """
    from transformers import Emu3ForConditionalGeneration
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

    from unigame.backbones.common.piecewise import PIXELS_AT_ONCE
    from unigame.backbones.emu3.vision import decode, encode
    from unigame.cli.counting import convolutions, count, count_lora, leaf, on_meta

    text, vq = config.text_config, config.vq_config
    model = on_meta(lambda: Emu3ForConditionalGeneration(config))
    patch = int(model.model.vqmodel.vision_spatial_factor)
    grid = math.ceil(math.sqrt(min_pixels) / patch)
    side = grid * patch

    def draw(vqmodel: Any) -> Tensor:
        return decode(vqmodel, leaf(1, grid**2, vq.embed_dim), grid)

    def read(vqmodel: Any) -> Tensor:
        return encode(vqmodel, leaf(1, 3, side, side))

    return ModelSize(
        name=name,
        parameters=count(model),
        float32_parameters=count(model.model.vqmodel),
        lora_parameters=count_lora(model.model.text_model),
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


def chameleon_size(name: str, config: ChameleonConfig) -> ModelSize:
    """Chameleon with its image decoder: its VQGAN reads and draws, a few pictures at a time."""
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    from unigame.backbones.chameleon.decoder import ChameleonVQDecoder, DrawingChameleon
    from unigame.backbones.common.piecewise import PIXELS_AT_ONCE
    from unigame.cli.counting import convolutions, count, count_lora, leaf, on_meta

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

    return ModelSize(
        name=name,
        parameters=count(model),
        float32_parameters=count(model.model.vqmodel),
        lora_parameters=count_lora(model.model.layers),
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


# ---- from files ----------------------------------------------------------------------------------
def _read_janus(name: str, file: Path, hub_id: str | None) -> ModelSize:
    from transformers import JanusConfig

    return janus_size(name, JanusConfig.from_json_file(file))


def _read_emu3(name: str, file: Path, hub_id: str | None) -> ModelSize:
    from transformers import Emu3Config
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(hub_id or str(file.parent))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name!r}: the settings of its image processor cannot be read, and they say how "
            "large its pictures are; download the checkpoint again"
        ) from error
    settings = found.get("image_processor", found)
    pixels = int(settings.get("min_pixels") or _EMU3_PIXELS)
    return emu3_size(name, Emu3Config.from_json_file(file), pixels)


def _read_chameleon(name: str, file: Path, hub_id: str | None) -> ModelSize:
    from transformers import ChameleonConfig

    return chameleon_size(name, ChameleonConfig.from_json_file(file))


def _read_composed(name: str, file: Path, hub_id: str | None) -> ModelSize:
    from unigame.cli.sizes_composed import composed_size

    return composed_size(name, file.parent)


_READERS: dict[str, Callable[[str, Path, str | None], ModelSize]] = {
    "chameleon": _read_chameleon,
    "emu3": _read_emu3,
    "janus": _read_janus,
    "unigame_composed": _read_composed,
}


# ---- published shapes ----------------------------------------------------------------------------
def janus_pro_config(size: Literal["1B", "7B"]) -> JanusConfig:
    """The shapes of the published Janus-Pro checkpoints, so that nothing need be downloaded."""
    from transformers import JanusConfig

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
