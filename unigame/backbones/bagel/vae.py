"""The image autoencoder: FLUX's, as diffusers computes it, under the names of its own file.

``ae.safetensors`` has no configuration beside it, but the shapes of its tensors say everything
except the scale of the latents, which is FLUX's where ``config.json`` says no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from unigame.backbones.bagel.configuration import FLUX_VAE
from unigame.errors import UserError

# A module's name in diffusers -> in the file.
_NAMES = (
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
    (r"mid_block\.attentions\.0\.to_out\.0\.", "mid.attn_1.proj_out."),
    (r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up\.(\d+)\.resnets\.", r"up.\1.block."),
    (r"up\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"conv_norm_out\.", "norm_out."),
    (r"conv_shortcut\.", "nin_shortcut."),
)


def build_vae(settings: Mapping[str, Any]) -> Any:
    """``diffusers.AutoencoderKL`` of these settings, without values.

    Raises:
        UserError: diffusers is not installed.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError(
            "BAGEL draws with diffusers, which is not installed: pip install 'unigame[bagel]'"
        ) from error
    levels = len(settings["block_out_channels"])
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **settings,
    )


def file_name(name: str, levels: int) -> str:
    """The name in ``ae.safetensors`` of a tensor of ``AutoencoderKL``."""
    level = re.match(r"decoder\.up_blocks\.(\d+)\.", name)
    if level is not None:  # the file counts from the finest level, diffusers in the order of work
        name = f"decoder.up.{levels - 1 - int(level[1])}.{name[level.end() :]}"
    for pattern, there in _NAMES:
        name = re.sub(pattern, there, name)
    return name


def file_names(vae: nn.Module) -> dict[str, str]:
    """Name in the file -> name in the module, of every tensor."""
    settings: Any = vae.config
    levels = len(settings.block_out_channels)
    return {file_name(name, levels): name for name in vae.state_dict()}


def to_file(value: Tensor) -> Tensor:
    """A tensor as the file has it, where attention's matrices are 1 x 1 convolutions."""
    return value[:, :, None, None] if value.dim() == 2 else value


def from_file(value: Tensor, wanted: Sequence[int]) -> Tensor:
    """The inverse of ``to_file``, for a tensor of shape ``wanted``."""
    return value.reshape(tuple(wanted)) if len(wanted) == 2 and value.dim() == 4 else value


def settings_of(shapes: Mapping[str, Sequence[int]], shown: str) -> dict[str, Any]:
    """Settings of ``build_vae`` by the shapes of a file's tensors; ``shown`` is the file.

    Raises:
        UserError: these are not the tensors of such an autoencoder.
    """
    levels = _numbers(shapes, r"encoder\.down\.(\d+)\.")
    blocks = _numbers(shapes, r"encoder\.down\.0\.block\.(\d+)\.")
    try:
        widths = [
            int(shapes[f"encoder.down.{level}.block.0.conv1.weight"][0])
            for level in range(len(levels))
        ]
        latent = int(shapes["decoder.conv_in.weight"][1])
        if not widths:
            raise KeyError("encoder.down.0.block.0.conv1.weight")
    except (KeyError, IndexError) as error:
        raise UserError(
            f"{shown} is no image autoencoder of FLUX's kind: it lacks {error}; download the "
            "checkpoint again"
        ) from error
    return {
        **FLUX_VAE,
        "block_out_channels": widths,
        "layers_per_block": len(blocks),
        "latent_channels": latent,
    }


def _numbers(names: Iterable[str], pattern: str) -> set[str]:
    """What the pattern finds in the names that it matches."""
    return {found[1] for name in names if (found := re.match(pattern, name))}
