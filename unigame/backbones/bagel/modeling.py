"""BAGEL as one model: language model, eyes, image autoencoder, and what joins them.

Names of modules are those of the tensors in ``ema.safetensors``; ``vae`` is what ``ae.safetensors``
holds. Neither transformers nor diffusers has this model.

Shape suffixes: B samples, N tokens of a picture, D width of the eyes, H width of the language
model, C channels and h, w sides of a latent.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from unigame.backbones.bagel.configuration import BagelConfig
from unigame.backbones.bagel.eyes import (
    Connector,
    PlaceTable,
    VisionTransformer,
    from_patches,
    patches,
    places,
)
from unigame.backbones.bagel.language import MoTForCausalLM, MoTModel
from unigame.backbones.bagel.vae import build_vae

FREQUENCIES = 256


class TimeEmbedder(nn.Module):
    """A noise level in [0, 1] as a token's width: cosines, sines, and a two-layer MLP."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCIES, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )

    def forward(self, level_B: Tensor) -> Tensor:
        """(B, H)."""
        half = FREQUENCIES // 2
        count = torch.arange(half, dtype=torch.float32, device=level_B.device)
        wave = level_B[:, None] * torch.exp(-math.log(10000) * count / half)
        kind = next(self.mlp.parameters()).dtype
        return self.mlp(torch.cat([wave.cos(), wave.sin()], dim=-1).to(kind))


class BagelModel(PreTrainedModel):
    """See the module docstring."""

    config_class = BagelConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: BagelConfig) -> None:
        super().__init__(config)
        hidden = config.llm_config.hidden_size
        self.language_model = MoTForCausalLM(config.llm_config)
        self.vit_model = nn.ModuleDict({"vision_model": VisionTransformer(config.vit_config)})
        eyes = config.vit_config.hidden_size
        self.connector = Connector(eyes, hidden, config.connector_act)
        self.vit_pos_embed = PlaceTable(config.vit_max_num_patch_per_side, hidden)
        patch = config.latent_patch_size**2 * config.latent_shape[0]
        self.time_embedder = TimeEmbedder(hidden)
        self.vae2llm, self.llm2vae = nn.Linear(patch, hidden), nn.Linear(hidden, patch)
        self.latent_pos_embed = PlaceTable(config.max_latent_size, hidden)
        self.vae = build_vae(config.vae_config)
        self.post_init()

    # ---- transformers' manner ------------------------------------------------------------------
    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, folder: str | Path, *, dtype: str = "float32", device: str | torch.device = "cpu"
    ) -> BagelModel:
        """A folder in the published layout; see ``files.read_model``."""
        from unigame.backbones.bagel.files import read_model

        return read_model(Path(folder), dtype, torch.device(device))

    def save_pretrained(self, folder: str | Path, **unused: Any) -> None:  # type: ignore[override]
        """Write the published layout, but for the tokenizer; see ``files.write_model``."""
        from unigame.backbones.bagel.files import write_model

        write_model(self, Path(folder))

    def get_input_embeddings(self) -> nn.Embedding:
        """Of the language model."""
        return self.language_model.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The language model's head."""
        return self.language_model.lm_head

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PlaceTable) and not module.pos_embed.is_meta:
            with torch.no_grad():
                module.pos_embed.copy_(module.values())

    # ---- reading -------------------------------------------------------------------------------
    @property
    def eyes(self) -> VisionTransformer:
        """The vision transformer."""
        found = self.vit_model["vision_model"]
        assert isinstance(found, VisionTransformer)
        return found

    def read(self, pixels_B3hw: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels in [-1, 1], sides in steps of a patch -> features (B, N, D), tokens (B, N, H)."""
        size = int(self.eyes.config.patch_size)
        height, width = (side // size for side in pixels_B3hw.shape[-2:])
        places_N = places(height, width, self.vit_pos_embed.most, pixels_B3hw.device)
        features_BND = self.eyes(pixels_B3hw, places_N)
        return features_BND, self.connector(features_BND) + self.vit_pos_embed(places_N)

    # ---- drawing -------------------------------------------------------------------------------
    @property
    def decoder(self) -> MoTModel:
        """The language model without its head."""
        return self.language_model.model

    def latent_tokens(self, latents_BChw: Tensor, level_B: Tensor) -> Tensor:
        """Noised latents and their levels -> what the language model reads, (B, N, H)."""
        size = self.config.latent_patch_size
        height, width = (side // size for side in latents_BChw.shape[-2:])
        places_N = places(height, width, self.latent_pos_embed.most, latents_BChw.device)
        times_B1H = self.time_embedder(level_B.to(latents_BChw))[:, None]
        tokens_BNH = self.vae2llm(patches(latents_BChw, size).to(self.vae2llm.weight.dtype))
        return tokens_BNH + times_B1H + self.latent_pos_embed(places_N)

    def velocity(self, states_BNH: Tensor, height: int) -> Tensor:
        """States of latent tokens -> noise - clean, (B, C, h, w), outside autocast.

        In the states' precision, float32 at least: in bfloat16 the rounding of ``z_hat + delta``
        would swallow a bounded delta. ``height`` is of the latent.
        """
        head, size = self.llm2vae, self.config.latent_patch_size
        states_BNH = states_BNH.to(torch.promote_types(states_BNH.dtype, torch.float32))
        with torch.autocast(states_BNH.device.type, enabled=False):
            flat = F.linear(states_BNH, head.weight.to(states_BNH), head.bias.to(states_BNH))
        return from_patches(flat, size, height // size)

    def encode(self, pixels_B3hw: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> scaled latents: the mode, not a draw. Outside autocast."""
        pixels_B3hw = pixels_B3hw.to(next(self.vae.parameters()).dtype)
        with torch.autocast(pixels_B3hw.device.type, enabled=False):
            mode = self.vae.encode(pixels_B3hw).latent_dist.mode()
        return (mode - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Scaled latents -> pixels around [-1, 1]. Outside autocast."""
        latents = latents_BChw / self.vae.config.scaling_factor + self.vae.config.shift_factor
        with torch.autocast(latents.device.type, enabled=False):
            return self.vae.decode(latents).sample
