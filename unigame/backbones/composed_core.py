"""A composed model as an object: assembling, freezing, LoRA, warm-up, checkpointing, precision.

Precision: under a bfloat16 base the language model and the eyes run in bfloat16 autocast. LoRA,
connector, projector, denoiser and VAE hold float32 weights; what lies between a perturbed state and
the pixels runs outside autocast, because a bounded perturbation is smaller than bfloat16 resolves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import peft
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from unigame.backbones import lora
from unigame.backbones.base import Backbone, BackboneFacts
from unigame.backbones.composed_config import (
    CONFIG_FILE,
    CONNECTOR_FILE,
    ComposedConfig,
    read_config,
)
from unigame.backbones.composed_connector import TrainedParts
from unigame.backbones.composed_diffusion import ImageBranch, NoiseLevels
from unigame.backbones.composed_layout import ComposedLayout
from unigame.backbones.composed_parts import (
    Parts,
    check_parts,
    load_encoder,
    load_image_branch,
    load_language,
)
from unigame.backbones.composed_pixels import load_tokenizer, square_pixels, vision_pixels
from unigame.backbones.composed_vision import Reader, build_reader
from unigame.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TRAINABLE_PARTS = ("connector", "projector")


class ComposedCore(Backbone):
    """All parts of a composed model, frozen; no verbs yet.

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
        super().__init__()
        self.settings, self.reader = config, reader
        self.model: nn.Module = language
        self.encoder, self.branch, self.trained = encoder, branch, trained
        self.processor = tokenizer
        self.pixels = square_pixels(config.image_size)
        self.vision_pixels = vision_pixels(config.vision_encoder or config.language, reader.side)
        self.dtype: torch.dtype = language.get_input_embeddings().weight.dtype
        decoder = language.get_decoder()
        self.prefix = next(name for name, part in language.named_modules() if part is decoder)
        self.targets = _lora_targets(decoder, config.language)
        end_ids = language.generation_config.eos_token_id
        listed = end_ids if isinstance(end_ids, list) else [end_ids]
        self.layout = ComposedLayout(
            tokenizer,
            reader,
            config.connector.num_queries,
            [int(token) for token in listed if token is not None],
        )
        self.latent_shape = (
            int(parts.vae["latent_channels"]),
            parts.latent_size,
            parts.latent_size,
        )
        self.checkpointing = False
        self.requires_grad_(False)
        for module in decoder.modules():
            if "attention_dropout" in vars(module):
                module.attention_dropout = 0.0  # not an nn.Dropout: without_dropout would miss it
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
        trained = TrainedParts(parts.hidden_size, config.connector, parts.feature_size)
        trained.check_file(folder)
        reader = build_reader(parts.language, parts.encoder, config.vision_size, config.image_size)
        tokenizer = load_tokenizer(config.language)
        levels = NoiseLevels(parts.scheduler)
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
        model = self.model
        return model.get_base_model() if isinstance(model, peft.PeftModel) else model

    @property
    def decoder(self) -> Any:
        """The language model proper, without head and eyes."""
        return self.language.get_decoder()

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """PIL images -> (B, 3, S, S) in [0, 1]: longest side to S, centred on mid-grey."""
        return self.pixels.from_pil(images)

    # ---- what trains ---------------------------------------------------------------------------
    def add_lora(self, config: peft.LoraConfig | None = None) -> Self:
        """Freeze everything and add float32 LoRA weights to the language model (r 16, B.2).

        Raises:
            UserError: there is an adapter already, or the settings reach outside the LM.
        """
        if isinstance(self.model, peft.PeftModel):
            raise UserError("this backbone has a LoRA adapter already; load the model afresh")
        settings = lora.language_model_lora(config, self.targets, self.prefix)
        self.requires_grad_(False)
        self.model = lora.wrap(self.model, settings, self.prefix)
        return self.train(self.training)

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

    @contextmanager
    def lora_disabled(self) -> Iterator[None]:
        """Within: the base model's outputs, as if no adapter were there."""
        with lora.disabled(self):
            yield

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
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.settings.save(folder)
        self.trained.save(folder)

    def load_adapter(self, folder: str | Path) -> None:
        """Load a PEFT adapter; during warm-up, the connector of a checkpoint of the warm-up.

        Raises:
            UserError: the adapter is missing, empty, or made for another model; the backbone is
                then as it was.
        """
        if self.trainable_parameters() and not isinstance(self.model, peft.PeftModel):
            self.trained.load(folder)
            return
        config, weights = lora.read_adapter(folder)
        added = not isinstance(self.model, peft.PeftModel)
        if added:
            self.add_lora(config)
        wrapped = cast(peft.PeftModel, self.model)
        try:
            lora.load_weights(wrapped, weights, folder)
        except UserError:
            if added:
                self.model = wrapped.unload()
            raise

    # ---- modes ---------------------------------------------------------------------------------
    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute activations of the LM, the eyes, the denoiser and the VAE in backward."""
        if every_n_layers != 1 or offload:
            raise UserError(
                f"activation checkpointing with every_n_layers={every_n_layers}, offload={offload} "
                "is not supported; leave both out of gradient_checkpointing_kwargs"
            )
        settings = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        parts: tuple[Any, ...] = (self.decoder, self.reader.vision(self))
        for part in parts:
            # Renamed in newer transformers, where the old name warns.
            enable = getattr(part, "activation_checkpointing_enable", None)
            (enable or part.gradient_checkpointing_enable)(settings)
        denoiser: Any = self.branch.denoiser
        denoiser.enable_gradient_checkpointing()  # acts in evaluation mode too
        self.branch.checkpointing = self.checkpointing = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Only the language model takes the mode; frozen parts stay in evaluation mode."""
        super().train(False)
        self.training = mode
        self.decoder.train(mode)
        for layer in self.reader.vision(self).modules():
            if isinstance(layer, GradientCheckpointingLayer):
                # Checkpointing acts on layers that are flagged as training; what is inside the
                # layer (and reads the flag for its dropout) stays in evaluation mode.
                layer.training = mode and self.checkpointing
        return self

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Bfloat16 autocast for a bfloat16 base; else whatever the caller has set.

        Autocast's weight cache is off: in older torch, once filled in a pass without gradient, it
        cuts the LoRA weights out of the next pass with gradient (pytorch issue 112583).
        """
        kind = self.device.type
        half = self.dtype == torch.bfloat16
        enabled = half or torch.is_autocast_enabled(kind)
        dtype = torch.bfloat16 if half else torch.get_autocast_dtype(kind)
        with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
            yield

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Within: evaluation mode; afterwards every module is exactly as it was."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def _facts(self, parts: Parts) -> BackboneFacts:
        vision = "encoder" if self.encoder is not None else "vision tower and projector of the VLM"
        return BackboneFacts(
            family="composed",
            image_size=self.settings.image_size,
            num_image_tokens=self.reader.num_tokens,
            hidden_size=parts.hidden_size,
            codebook_size=None,
            lora_targets=self.targets,
            frozen_parts=(vision, "connector", "denoiser", "vae", "lm_head"),
            dtype=self.dtype,
            num_parameters=sum(p.numel() for p in self.parameters()),
            num_state_tokens=self.settings.connector.num_queries,
        )


def compose(
    folder: str | Path, config: ComposedConfig, *, seed: int = 0, fit_width: bool = True
) -> Path:
    """Make a composed model: check that the parts fit, and write a fresh connector beside them.

    Args:
        folder: to write; made where it is not there.
        config: the parts and settings.
        seed: of the connector's weights.
        fit_width: set ``connector.width`` to what the denoiser reads.

    Raises:
        UserError: see ``check_parts``; or the folder holds a model already.
    """
    from unigame.backbones.composed_parts import denoiser_width

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
