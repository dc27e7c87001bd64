"""How a composed model sees: the VLM's own eyes, or a separate encoder and a projector.

Every family of VLMs cuts, merges and places image tokens in its own way; the classes here say how,
for the named ones. A reader holds no module: it is handed the model.

Shape suffixes: B samples, S side of the image read, N image tokens, P patches, D feature width,
H width of the language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from unigame.errors import UserError

# model_type of a separate vision encoder -> the transformers class that reads it
ENCODERS = {
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
}


class Reader(ABC):
    """Sees one picture of a fixed, square size.

    Attributes:
        side: S, to which pictures are resized.
        num_tokens: N, what one picture costs in the language model.
        image_token_id: the id that marks a place of an image token; None: the family has none.
    """

    side: int
    num_tokens: int
    image_token_id: int | None = None

    @abstractmethod
    def read(self, model: Any, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels -> frozen features (B, N, D) and projected tokens (B, N, H)."""

    @abstractmethod
    def vision(self, model: Any) -> nn.Module:
        """The frozen vision tower, for gradient checkpointing."""

    def expand(self, text: str, tokenizer: Any) -> str:
        """A prompt with one placeholder -> with one for each image token, as its processor does."""
        token = tokenizer.convert_ids_to_tokens(self.image_token_id)
        return text.replace(token, token * self.num_tokens)

    def positions(self, image_mask: list[bool]) -> list[list[int]] | None:
        """Rotary positions of a row, (axes, L); None where they just count tokens."""
        return None


class EncoderReader(Reader):
    """SigLIP or CLIP, and a trained projector, in front of a text-only LLM."""

    def __init__(self, config: Any) -> None:
        self.side = int(config.image_size)
        self.num_tokens = (self.side // int(config.patch_size)) ** 2

    def read(self, model: Any, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """``model`` is the composed backbone: it owns encoder and projector."""
        states = model.encoder(pixel_values=pixels_B3SS).last_hidden_state
        features_BND = states[:, -self.num_tokens :]  # CLIP's class token comes first
        return features_BND, model.trained.projector(features_BND)

    def vision(self, model: Any) -> nn.Module:
        """The encoder."""
        return model.encoder


class LlavaReader(Reader):
    """LLaVA 1.5: a CLIP or SigLIP tower at its own size, an MLP, one token for a patch."""

    def __init__(self, config: Any, side: int | None) -> None:
        self.side = _own_side(config.vision_config, side)
        self.num_tokens = (self.side // int(config.vision_config.patch_size)) ** 2
        self.image_token_id = int(config.image_token_id)
        self.keeps_class = config.vision_feature_select_strategy != "default"
        self.num_tokens += int(
            self.keeps_class and config.vision_config.model_type.startswith("clip")
        )

    def read(self, model: Any, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens as ``get_image_features`` projects them; features of the tower's last layer."""
        vlm = model.language.model
        output = vlm.get_image_features(pixel_values=pixels_B3SS)
        return output.last_hidden_state[:, -self.num_tokens :], torch.stack(
            list(output.pooler_output)
        )

    def vision(self, model: Any) -> nn.Module:
        """The vision tower."""
        return model.language.model.vision_tower


class Idefics3Reader(Reader):
    """SmolVLM and Idefics 3, without image splitting: a SigLIP tower and a pixel shuffle."""

    def __init__(self, config: Any, side: int | None) -> None:
        self.side = _own_side(config.vision_config, side)
        self.grid = self.side // int(config.vision_config.patch_size)
        self.num_tokens = (self.grid // int(config.scale_factor)) ** 2
        self.image_token_id = int(config.image_token_id)

    def read(self, model: Any, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """The model's own method would drop a picture that is all mid-grey; its parts do not."""
        vlm = model.language.model
        shape = (len(pixels_B3SS), self.grid, self.grid)
        every = torch.ones(shape, dtype=torch.bool, device=pixels_B3SS.device)
        states_BPD = vlm.vision_model(
            pixel_values=pixels_B3SS, patch_attention_mask=every
        ).last_hidden_state
        features_BND = states_BPD.reshape(len(pixels_B3SS), self.num_tokens, -1)
        return features_BND, vlm.connector(states_BPD)

    def vision(self, model: Any) -> nn.Module:
        """The vision tower."""
        return model.language.model.vision_model

    def expand(self, text: str, tokenizer: Any) -> str:
        """One picture stands between two marks, behind the mark of a global image."""
        token = tokenizer.convert_ids_to_tokens(self.image_token_id)
        mark = "<fake_token_around_image>"
        return text.replace(token, f"{mark}<global-img>{token * self.num_tokens}{mark}")


class QwenReader(Reader):
    """Qwen2-VL and Qwen2.5-VL: any size in steps of two patches, 2 x 2 patches in one token."""

    def __init__(self, config: Any, side: int | None) -> None:
        vision = config.vision_config
        self.patch, self.merge = int(vision.patch_size), int(vision.spatial_merge_size)
        self.frames = int(vision.temporal_patch_size)
        step = self.patch * self.merge
        self.side = step * max(1, (side or 448) // step)
        self.grid = self.side // self.patch
        self.num_tokens = (self.grid // self.merge) ** 2
        self.image_token_id = int(config.image_token_id)

    def read(self, model: Any, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Features are the four patches of a token side by side, in the tower's own order."""
        visual, count = model.language.model.visual, len(pixels_B3SS)
        grid_B3 = torch.tensor([[1, self.grid, self.grid]] * count, device=pixels_B3SS.device)
        output = visual(self.patches(pixels_B3SS), grid_thw=grid_B3)
        features_BND = output.last_hidden_state.reshape(count, self.num_tokens, -1)
        return features_BND, output.pooler_output.reshape(count, self.num_tokens, -1)

    def patches(self, pixels_B3SS: Tensor) -> Tensor:
        """(B * P, 3 * frames * patch * patch), ordered as the model's image processor does."""
        count, half = len(pixels_B3SS), self.grid // self.merge
        shape = (count, 3, half, self.merge, self.patch, half, self.merge, self.patch)
        cut = pixels_B3SS.reshape(shape).permute(0, 2, 5, 3, 6, 1, 4, 7)
        patch = cut.reshape(count * self.grid**2, 3, 1, self.patch, self.patch)
        return patch.expand(-1, -1, self.frames, -1, -1).reshape(count * self.grid**2, -1)

    def vision(self, model: Any) -> nn.Module:
        """The vision tower."""
        return model.language.model.visual

    def positions(self, image_mask: list[bool]) -> list[list[int]]:
        """Time, row and column: each image of g x g tokens takes g positions, a word one."""
        grid = self.grid // self.merge
        axes: list[list[int]] = [[], [], []]
        now, seen = 0, 0
        for is_image in image_mask:
            if is_image:
                for axis, offset in zip(axes, (0, seen // grid, seen % grid), strict=True):
                    axis.append(now + offset)
                seen = (seen + 1) % self.num_tokens
                now += 0 if seen else grid
            else:
                for axis in axes:
                    axis.append(now)
                now += 1
        return axes


# model_type of a VLM -> how it sees
VLMS: dict[str, type[LlavaReader] | type[Idefics3Reader] | type[QwenReader]] = {
    "qwen2_vl": QwenReader,
    "qwen2_5_vl": QwenReader,
    "llava": LlavaReader,
    "smolvlm": Idefics3Reader,
    "idefics3": Idefics3Reader,
}


def build_reader(language: Any, encoder: Any, vision_size: int | None, image_size: int) -> Reader:
    """The reader of a VLM config, or of a separate encoder's config.

    Raises:
        UserError: a ``vision_size`` that the model cannot read.
    """
    if encoder is not None:
        if vision_size not in (None, int(encoder.image_size)):
            raise UserError(
                f"vision_size={vision_size}, but the vision encoder reads {encoder.image_size} px "
                "only; leave vision_size out"
            )
        return EncoderReader(encoder)
    kind = VLMS[language.model_type]
    return kind(language, vision_size or (image_size if kind is QwenReader else None))


def _own_side(vision: Any, side: int | None) -> int:
    if side not in (None, int(vision.image_size)):
        raise UserError(
            f"vision_size={side}, but this model reads {vision.image_size} px only; leave "
            "vision_size out"
        )
    return int(vision.image_size)
