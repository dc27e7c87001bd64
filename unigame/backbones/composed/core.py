"""A composed model as an object: what ``HubModel`` needs to know of it, its parts and the warm-up.

Precision: under a bfloat16 base the language model and the eyes run in bfloat16 autocast. LoRA,
connector, projector, denoiser and VAE hold float32 weights; what lies between a perturbed state and
the pixels runs outside autocast, because a bounded perturbation is smaller than bfloat16 resolves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import peft
import torch
from torch import nn

from unigame.backbones.base import BackboneFacts
from unigame.backbones.common.hub_model import LORA_TARGETS
from unigame.backbones.common.understanding import ReadingBackbone, configured_ends
from unigame.backbones.composed.config import (
    CONFIG_FILE,
    CONNECTOR_FILE,
    ComposedConfig,
    read_config,
)
from unigame.backbones.composed.connector import TrainedParts
from unigame.backbones.composed.diffusion import ImageBranch, NoiseLevels
from unigame.backbones.composed.layout import ComposedLayout
from unigame.backbones.composed.parts import (
    Parts,
    check_parts,
    check_weights,
    load_encoder,
    load_image_branch,
    load_language,
)
from unigame.backbones.composed.pixels import (
    copy_settings,
    load_tokenizer,
    square_pixels,
    vision_pixels,
)
from unigame.backbones.composed.vision import Reader, build_reader
from unigame.backbones.model_files import loading_from
from unigame.errors import UserError

TRAINABLE_PARTS = ("connector", "projector")
MERGED_LANGUAGE = "language"


class ComposedCore(ReadingBackbone):
    """All parts of a composed model, frozen; it reads, and does not draw yet.

    Args:
        config: what it is made of; written again by ``save_pretrained``.
        parts: the checked configurations of its parts.
        language: the VLM or LLM.
        encoder: the separate vision encoder of an LLM.
        branch: denoiser and VAE.
        trained: queries, connector and projector.
        tokenizer: of the language model.
        reader: how it sees.
    """

    layout: ComposedLayout

    def __init__(
        self,
        config: ComposedConfig,
        parts: Parts,
        *,
        language: Any,
        encoder: nn.Module | None,
        branch: ImageBranch,
        trained: TrainedParts,
        tokenizer: Any,
        reader: Reader,
    ) -> None:
        queries = config.connector.num_queries
        layout = ComposedLayout(tokenizer, reader, queries, configured_ends(language))
        super().__init__(language, tokenizer, layout, square_pixels(config.image_size))
        self.settings, self.reader = config, reader
        self.encoder, self.branch, self.trained = encoder, branch, trained
        self.vision_pixels = vision_pixels(config.vision_encoder or config.language, reader.side)
        decoder = self.language_model
        self.language_name = next(
            name for name, part in language.named_modules() if part is decoder
        )
        side = parts.latent_size
        self.latent_shape = (int(parts.vae["latent_channels"]), side, side)
        self.requires_grad_(False)
        self.facts = self._facts(parts)
        self.eval()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, dtype: str = "float32", device: torch.device | None = None
    ) -> Self:
        """Load a folder (or Hub repository) with ``config.json`` and ``connector.safetensors``.

        Raises:
            UserError: see ``check_parts``; everything but the weights of the frozen parts is
                checked before any of them is read.
        """
        folder = name_or_path if isinstance(name_or_path, Path) else _fetch(name_or_path)
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
        backbone = cls(
            config,
            parts,
            language=language,
            encoder=encoder,
            branch=branch,
            trained=trained,
            tokenizer=tokenizer,
            reader=reader,
        )
        return backbone.to(device or torch.device("cpu"))

    # ---- parts ---------------------------------------------------------------------------------
    @property
    def language(self) -> Any:
        """The transformers model; with LoRA its linear layers are PEFT's, in place."""
        return self.base

    @property
    def language_model(self) -> Any:
        """The language model proper, without head and eyes."""
        return self.base.get_decoder()

    def frozen_towers(self) -> list[Any]:
        """The eyes."""
        return [self.reader.vision(self)]

    # ---- what trains ---------------------------------------------------------------------------
    def unfreeze(self, parts: Sequence[str]) -> Self:
        """Train ``connector`` (queries included) or ``projector``: the warm-up before the game.

        Raises:
            UserError: an unknown part, a projector where the VLM has its own eyes, or an adapter
                in place already.
        """
        if isinstance(self.model, peft.PeftModel):
            raise UserError(
                "train_parts with a LoRA adapter: warm the connector up first, on the model "
                "without an adapter, and then train the adapter"
            )
        for name in parts:
            if name not in TRAINABLE_PARTS:
                known = ", ".join(TRAINABLE_PARTS)
                raise UserError(f"train_parts: unknown part {name!r}; a composed model has {known}")
            part = getattr(self.trained, name)
            if part is None:
                raise UserError(
                    "train_parts: this model has no projector, its VLM has eyes of its own; "
                    "leave 'projector' out"
                )
            part.requires_grad_(True)
        return self

    # ---- files ---------------------------------------------------------------------------------
    @property
    def saved_files(self) -> tuple[str, ...]:
        """What ``save_pretrained`` writes at least."""
        if isinstance(self.model, peft.PeftModel):
            return super().saved_files
        return CONFIG_FILE, CONNECTOR_FILE

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the LoRA adapter; without one, ``config.json`` and the connector.

        The frozen parts stay where they are: ``config.json`` names them.
        """
        if isinstance(self.model, peft.PeftModel):
            super().save_pretrained(folder)
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.settings.save(folder)
        self.trained.save(folder)

    def save_merged(self, folder: str | Path) -> None:
        """Write a composed model whose language model, in ``language/`` beside it, is merged.

        The parts that no adapter touches stay where they are.
        """
        if isinstance(self.model, peft.PeftModel):
            self.model = self.model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
        own = Path(folder) / MERGED_LANGUAGE
        own.mkdir(parents=True)
        copy_settings(self.settings.language, own)
        self.model.save_pretrained(own)
        self.processor.save_pretrained(own)
        self.save_pretrained(folder)
        self.settings.save(folder, language=MERGED_LANGUAGE)

    def load_adapter(self, folder: str | Path) -> None:
        """Load a PEFT adapter; during warm-up, the connector of a checkpoint of the warm-up.

        Raises:
            UserError: the adapter is missing, empty, or made for another model; the backbone is
                then as it was.
        """
        if self.trainable_parameters() and not isinstance(self.model, peft.PeftModel):
            self.trained.load(folder)
            return
        super().load_adapter(folder)

    # ---- modes ---------------------------------------------------------------------------------
    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute activations of the LM, the eyes, the denoiser and the VAE in backward."""
        super().gradient_checkpointing_enable(
            gradient_checkpointing_kwargs, every_n_layers, offload
        )
        denoiser: Any = self.branch.denoiser
        denoiser.enable_gradient_checkpointing()  # acts in evaluation mode too
        self.branch.checkpointing = True

    def _facts(self, parts: Parts) -> BackboneFacts:
        vision = "encoder" if self.encoder is not None else "vision tower and projector of the VLM"
        return BackboneFacts(
            family="composed",
            image_size=self.settings.image_size,
            num_image_tokens=self.reader.num_tokens,
            hidden_size=parts.hidden_size,
            codebook_size=None,
            lora_targets=_lora_targets(self.language_model, self.settings.language),
            frozen_parts=(vision, "connector", "denoiser", "vae", "lm_head"),
            dtype=self.dtype,
            num_parameters=sum(p.numel() for p in self.parameters()),
            num_state_tokens=self.settings.connector.num_queries,
        )


def _lora_targets(decoder: nn.Module, reference: str) -> tuple[str, ...]:
    linear = {
        name.rpartition(".")[2]
        for name, part in decoder.named_modules()
        if isinstance(part, nn.Linear)
    }
    targets = tuple(name for name in LORA_TARGETS if name in linear)
    if not targets:
        raise UserError(
            f"language {reference!r} has none of the linear layers {', '.join(LORA_TARGETS)}, so "
            "LoRA has no place in it; use a model of the Qwen, Llama, Mistral or GPT-OSS families"
        )
    return targets


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, allow_patterns=[CONFIG_FILE, CONNECTOR_FILE]))
