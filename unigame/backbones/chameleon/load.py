"""Loading a checkpoint of Chameleon, and the image decoder that transformers lacks.

Chameleon's image tokenizer is a VQGAN (Esser et al. 2021; Gafni et al. 2022, "Make-a-scene"). Meta
publishes encoder and decoder together in ``vqgan.ckpt``; the Hub checkpoints keep the encoder only.
The decoder here is made of the encoder's own blocks, and its tensors have the names of the
original: ``decoder.up.0`` is the level of the highest resolution, which runs last.

Shape suffixes: M images, E code width, C channels.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonProcessor
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonVQVAEEncoderAttnBlock,
    ChameleonVQVAEEncoderResnetBlock,
)

from unigame.backbones.base import Reading
from unigame.backbones.chameleon.layout import ChameleonLayout
from unigame.backbones.chameleon.model import DECODER_PARTS, ChameleonBackbone, check_tokens
from unigame.backbones.common.autoregressive import TOKENIZER
from unigame.backbones.common.hub_model import load_weights
from unigame.backbones.common.pixels import CroppingTwin
from unigame.backbones.common.understanding import reading_of
from unigame.backbones.folder import check_files
from unigame.backbones.model_files import loading_from, processor_from, refuse_not_finite
from unigame.errors import UserError

DECODER_FILES = ("vqgan.ckpt", "tokenizer/vqgan.ckpt", "vqgan.safetensors")
"""Where a decoder is looked for in a checkpoint folder that has none among its weights."""
_CODEBOOK = "quantize.embedding.weight"


def from_pretrained(
    name_or_path: str | Path, *, dtype: str = "float32", device: torch.device | None = None
) -> ChameleonBackbone:
    """A checkpoint in the Hub format; ``load_backbone`` calls this.

    The image decoder comes from the checkpoint's own weights, else from a file of
    ``DECODER_FILES`` in its folder, else the backbone only understands.

    Raises:
        UserError: files are missing or unreadable, tokens do not fit the image tokenizer (said
            before weights are read), or weights do not fit the configuration.
    """
    if isinstance(name_or_path, Path):
        check_files(name_or_path)
    with processor_from(name_or_path):
        processor = load_processor(name_or_path)
    with loading_from(name_or_path, ("config.json",)):
        check_tokens(ChameleonConfig.from_pretrained(name_or_path), processor)
    parts = [f"model.vqmodel.{part}" for part in DECODER_PARTS]
    model = load_weights(DrawingChameleon, name_or_path, dtype, optional=parts, float32=[TOKENIZER])
    backbone = ChameleonBackbone(model, processor)
    if isinstance(name_or_path, Path) and not backbone.can_draw:
        files = [name_or_path / name for name in DECODER_FILES]
        found = next((file for file in files if file.is_file()), None)
        if found is not None:
            backbone.load_decoder(found)
    return backbone.to(device or torch.device("cpu"))


def load_reading(name_or_path: str | Path) -> Reading:
    """How the checkpoint reads records; no weights are read."""
    with processor_from(name_or_path):
        processor = load_processor(name_or_path)
    config = ChameleonConfig.from_pretrained(name_or_path)
    check_tokens(config, processor)
    pixels = CroppingTwin(processor.image_processor, int(config.vq_config.resolution))
    return reading_of(ChameleonLayout(processor), pixels, config, ChameleonBackbone.max_images)


def load_processor(name_or_path: str | Path) -> ChameleonProcessor:
    """The processor of a checkpoint, always with the PIL image processor (see Janus's)."""
    processor = ChameleonProcessor.from_pretrained(name_or_path)
    if not isinstance(processor.image_processor, ChameleonImageProcessorPil):
        processor.image_processor = ChameleonImageProcessorPil.from_pretrained(name_or_path)
    return processor


# ---- the image decoder ---------------------------------------------------------------------------
def load_decoder(vqmodel: Any, file: Path) -> None:
    """Fill ``decoder`` and ``post_quant_conv`` of an image tokenizer from Meta's ``vqgan.ckpt``.

    The file's codebook must be the model's, up to the rounding of a bfloat16 checkpoint, and
    replaces it: the decoder was trained with these very vectors.

    Raises:
        UserError: the file is missing, cannot be read, lacks tensors, or belongs to another
            tokenizer.
    """
    if not file.is_file():
        raise UserError(f"image decoder {str(file)!r} is missing; give Meta's vqgan.ckpt")
    weights = _read(file)
    refuse_not_finite(weights, f"image decoder {str(file)!r}")
    own = vqmodel.quantize.embedding.weight
    theirs = weights.get(_CODEBOOK, own.detach())
    if theirs.shape != own.shape or not torch.allclose(
        theirs.to(own), own, rtol=0.01, atol=1e-3 * float(own.detach().abs().max())
    ):
        raise UserError(
            f"image decoder {str(file)!r} has another codebook than the model "
            f"({tuple(theirs.shape)} against {tuple(own.shape)}); take the vqgan.ckpt that belongs "
            "to this checkpoint"
        )
    decoder = ChameleonVQDecoder(vqmodel.config)
    convolution = nn.Conv2d(own.shape[1], vqmodel.config.latent_channels, 1)
    for name, part in zip(DECODER_PARTS, (decoder, convolution), strict=True):
        found = {
            key.removeprefix(f"{name}."): tensor
            for key, tensor in weights.items()
            if key.startswith(f"{name}.")
        }
        try:
            part.load_state_dict(found)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"image decoder {str(file)!r} does not fit the model ({reason}); take the "
                "vqgan.ckpt that belongs to this checkpoint"
            ) from error
        setattr(vqmodel, name, part.to(own).requires_grad_(False).eval())
    with torch.no_grad():
        own.copy_(theirs)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, UnpicklingError, EOFError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else "empty file"
        raise UserError(
            f"image decoder {str(file)!r} is no file of plain tensors ({reason}); copy Meta's "
            "vqgan.ckpt again, or save its state dict as safetensors"
        ) from error
    weights = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    return {key: value for key, value in weights.items() if isinstance(value, Tensor)}


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, grid_MChw: Tensor) -> Tensor:
        return self.conv(F.interpolate(grid_MChw, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """The blocks of one resolution, and the step to the next one."""

    def __init__(
        self,
        config: ChameleonVQVAEConfig,
        channels: tuple[int, int],
        attends: bool,
        upsamples: bool,
    ) -> None:
        super().__init__()
        entering, leaving = channels
        widths = [entering] + [leaving] * config.num_res_blocks
        self.block = nn.ModuleList(
            ChameleonVQVAEEncoderResnetBlock(config, width, leaving) for width in widths
        )
        self.attn = nn.ModuleList(
            ChameleonVQVAEEncoderAttnBlock(leaving) for _ in widths if attends
        )
        if upsamples:
            self.upsample = _Upsample(leaving)

    def forward(self, grid_MChw: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            grid_MChw = block(grid_MChw)
            if self.attn:
                grid_MChw = self.attn[index](grid_MChw)
        return self.upsample(grid_MChw) if hasattr(self, "upsample") else grid_MChw


class ChameleonVQDecoder(nn.Module):
    """Latents (M, latent_channels, h, w) -> pixels (M, 3, S, S) in about [-1, 1].

    Args:
        config: of the image tokenizer; the decoder mirrors its encoder.
    """

    def __init__(self, config: ChameleonVQVAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * factor for factor in config.channel_multiplier]
        top = len(widths) - 1
        vanilla = config.attn_type == "vanilla"
        attended = (config.attn_resolutions or []) if vanilla else []
        self.conv_in = nn.Conv2d(config.latent_channels, widths[top], kernel_size=3, padding=1)
        self.mid = nn.ModuleDict(
            {
                "block_1": ChameleonVQVAEEncoderResnetBlock(config, widths[top], widths[top]),
                "attn_1": ChameleonVQVAEEncoderAttnBlock(widths[top]) if vanilla else nn.Identity(),
                "block_2": ChameleonVQVAEEncoderResnetBlock(config, widths[top], widths[top]),
            }
        )
        self.up = nn.ModuleList(
            _Level(
                config,
                channels=(widths[min(level + 1, top)], widths[level]),
                attends=config.resolution // 2**level in attended,
                upsamples=level > 0,
            )
            for level in range(len(widths))
        )
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, kernel_size=3, padding=1)

    def forward(self, latents_MChw: Tensor) -> Tensor:
        """See the class."""
        grid = self.conv_in(latents_MChw)
        for block in self.mid.values():
            grid = block(grid)
        for level in reversed(self.up):
            grid = level(grid)
        return self.conv_out(F.silu(self.norm_out(grid)))


class DrawingChameleon(ChameleonForConditionalGeneration):
    """Chameleon whose image tokenizer has its decoder, ``model.vqmodel.decoder``."""

    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__(config)
        self.model.vqmodel.decoder = ChameleonVQDecoder(config.vq_config)


# Saved checkpoints name this class, and plain transformers shall find it: it reads all but the
# decoder of them.
DrawingChameleon.__name__ = ChameleonForConditionalGeneration.__name__
