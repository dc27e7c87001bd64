"""What a BAGEL is made of, and how the game draws with it.

A published folder says the first in three places: ``llm_config.json``, ``vit_config.json``, and the
shapes in its weight files. ``config.json`` may be missing there; whatever it says of the settings
below counts, so that a downloaded folder can be told to draw smaller pictures:

    {"model_type": "bagel", "image_size": 256, "vision_size": 224}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig, Qwen2Config, SiglipVisionConfig
from transformers.activations import ACT2FN

from unigame.errors import UserError

MODEL_TYPE = "bagel"
LARGEST_SIDE = 8192
# FLUX's image autoencoder, which the published model draws with.
FLUX_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}
SETTINGS = (
    "image_size",
    "vision_size",
    "draw_strength",
    "draw_spread",
    "sample_steps",
    "sample_shift",
    "guidance_interval",
    "timestep_shift",
    "caption_dropout",
    "connector_act",
)
SIZES = ("latent_patch_size", "max_latent_size", "vit_max_num_patch_per_side", "vae_config")
"""What the shapes of weights say; ``config.json`` repeats it for readers without the weights."""


class BagelConfig(PreTrainedConfig):
    """Sizes of the parts, and settings of drawing.

    Args:
        llm_config: of the language model (Qwen2), as in ``llm_config.json``.
        vit_config: of the eyes (SigLIP), as in ``vit_config.json``: it counts one layer more than
            the model has, because the last one is not used.
        vae_config: of the image autoencoder, as ``diffusers.AutoencoderKL`` takes it; where weights
            are at hand, their shapes say all of it but ``scaling_factor`` and ``shift_factor``.
        latent_patch_size: side of the square of latents that one token stands for; where weights
            are at hand, their shapes say it.
        max_latent_size: most such squares along a side of a picture that is drawn.
        vit_max_num_patch_per_side: most patches along a side of a picture that is read.
        connector_act: activation between eyes and language model.
        image_size: side of the square picture that is drawn, or its (height, width), in px; None:
            512, or what fits.
        vision_size: the same of the picture that is read; None: 448, or what fits.
        draw_strength: noise level t from which the game redraws; 0 is the picture, 1 pure noise.
        draw_spread: standard deviation of the latent noise by which K candidates differ, in units
            of the latents, whose own deviation is about 1.
        sample_steps: points in time of free drawing, both ends included, as the authors count.
        sample_shift: of these points toward noise.
        guidance_interval: levels (above, up to) at which free drawing is guided.
        timestep_shift: the same shift, of the levels of training; 4, as SRUM (arXiv 2510.12784)
            reports of the published model's last stage.
        caption_dropout: share of captions that training leaves out, for guidance.

    Raises:
        UserError: a setting is outside its range, or a size is no multiple of its patches.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        llm_config: dict[str, Any] | Qwen2Config | None = None,
        vit_config: dict[str, Any] | SiglipVisionConfig | None = None,
        vae_config: dict[str, Any] | None = None,
        latent_patch_size: int = 2,
        max_latent_size: int = 64,
        vit_max_num_patch_per_side: int = 70,
        connector_act: str = "gelu_pytorch_tanh",
        image_size: int | Sequence[int] | None = None,
        vision_size: int | Sequence[int] | None = None,
        draw_strength: float = 0.5,
        draw_spread: float = 0.1,
        sample_steps: int = 50,
        sample_shift: float = 3.0,
        guidance_interval: tuple[float, float] | list[float] = (0.4, 1.0),
        timestep_shift: float = 4.0,
        caption_dropout: float = 0.1,
        **rest: Any,
    ) -> None:
        self.llm_config = _part(Qwen2Config, llm_config)
        self.vit_config = _part(SiglipVisionConfig, vit_config)
        self.vae_config = dict(FLUX_VAE if vae_config is None else vae_config)
        if type(latent_patch_size) is not int or not 1 <= latent_patch_size <= 64:
            raise UserError(
                f"latent_patch_size={latent_patch_size!r} must be a whole number from 1 to 64"
            )
        self.latent_patch_size, self.max_latent_size = latent_patch_size, max_latent_size
        self.vit_max_num_patch_per_side = vit_max_num_patch_per_side
        self.connector_act = connector_act
        self.image_size = self._fitting(image_size, "image_size", 512)
        self.vision_size = self._fitting(vision_size, "vision_size", 448)
        self.draw_strength, self.draw_spread = draw_strength, draw_spread
        self.sample_steps, self.sample_shift = sample_steps, sample_shift
        self.guidance_interval = guidance_interval
        self.timestep_shift, self.caption_dropout = timestep_shift, caption_dropout
        self._check()
        rest["tie_word_embeddings"] = False  # the published model's output head is its own
        super().__init__(**rest)

    # ---- what follows from it ------------------------------------------------------------------
    @property
    def downsample(self) -> int:
        """Pixels along a side of the square that one latent token stands for."""
        return self.latent_patch_size * 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of a picture that is drawn, in px."""
        return _pair(self.image_size)

    @property
    def vision_shape(self) -> tuple[int, int]:
        """(height, width) of a picture that is read, in px."""
        return _pair(self.vision_size)

    @property
    def num_image_tokens(self) -> int:
        """Tokens of a picture that is read."""
        height, width = self.vision_shape
        return height * width // int(self.vit_config.patch_size) ** 2

    @property
    def num_latents(self) -> int:
        """Tokens of a picture that is drawn."""
        height, width = self.image_shape
        return height * width // self.downsample**2

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latent."""
        squares = 2 ** (len(self.vae_config["block_out_channels"]) - 1)
        height, width = self.image_shape
        return int(self.vae_config["latent_channels"]), height // squares, width // squares

    def get_text_config(self, *args: Any, **kwargs: Any) -> Qwen2Config:
        """The language model's."""
        return self.llm_config

    def settings(self) -> dict[str, Any]:
        """What ``config.json`` holds beside the family's name."""
        return {name: getattr(self, name) for name in (*SETTINGS, *SIZES)}

    # ---- checks --------------------------------------------------------------------------------
    def _fitting(self, size: int | Sequence[int] | None, name: str, usual: int) -> int | list[int]:
        """A side, or (height, width) where these differ."""
        drawn = name == "image_size"
        step = self.downsample if drawn else int(self.vit_config.patch_size)
        most = step * (self.max_latent_size if drawn else self.vit_max_num_patch_per_side)
        if size is None:
            return min(usual - usual % step, most)
        sides: list[Any] = list(size) if isinstance(size, list | tuple) else [size]
        whole = all(type(side) is int and step <= side <= most for side in sides)
        if not (whole and len(sides) in (1, 2)):
            raise UserError(
                f"{name}={size!r} must be a whole number of px from {step} to {most}, or two such "
                "numbers, height and width"
            )
        if any(side % step for side in sides):
            near = [side - side % step for side in sides]
            raise UserError(
                f"{name}={size} px is no multiple of {step}, the side of one token; give "
                f"{near if len(near) > 1 else near[0]}"
            )
        return sides if len(set(sides)) > 1 else sides[0]

    def _check(self) -> None:
        for name, low, high in (
            ("draw_strength", 0.0, 1.0),
            ("draw_spread", 0.0, 10.0),
            ("sample_shift", 0.0, 100.0),
            ("timestep_shift", 0.0, 100.0),
        ):
            value = getattr(self, name)
            if not _number(value) or not low < value <= high:
                raise UserError(f"{name}={value!r} must be a number above {low:g}, up to {high:g}")
        if self.connector_act not in ACT2FN:
            raise UserError(
                f"connector_act={self.connector_act!r} is no activation that transformers knows; "
                "the published model's is 'gelu_pytorch_tanh'"
            )
        for name, least in (("scaling_factor", 0.0), ("shift_factor", -math.inf)):
            value = self.vae_config.get(name, 1.0)
            if not _number(value) or not least < value < math.inf:
                above = " above 0" if least == 0 else ""
                raise UserError(f"vae_config.{name}={value!r} must be a number{above}")
        share = self.caption_dropout
        if not _number(share) or not 0 <= share < 1:
            raise UserError(f"caption_dropout={share!r} must be a number in [0, 1)")
        steps = self.sample_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise UserError(f"sample_steps={steps!r} must be a whole number from 2")
        ends = self.guidance_interval
        if not isinstance(ends, tuple | list) or len(ends) != 2 or not all(map(_number, ends)):
            raise UserError(f"guidance_interval={ends!r} must be two numbers, such as [0.4, 1.0]")
        if not 0 <= ends[0] < ends[1] <= 1:  # nan, too
            raise UserError(
                f"guidance_interval={ends!r} must rise, from 0 or above to 1 or below; to draw "
                "without guidance, give --guidance-scale 1"
            )


def _pair(size: int | list[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _part(kind: Any, content: Any) -> Any:
    return kind.from_dict(content) if isinstance(content, dict) else content or kind()


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
