"""Composed unified models: a VLM or LLM, a connector, and a text-to-image denoiser of diffusers.

The language model reads a picture by its own eyes, or by a separate encoder and a projector (the
paper's UMM-1 and UMM-2). To draw, it reads a prompt and N learned queries; the states of the
queries (z_hat) pass a connector and condition the denoiser. The game redraws an image by noising
its latent part of the way and denoising it again under the perturbed states: continuous, so nothing
has to be straightened through. What each setting of the contract means here:

- ``codes`` and ``compact`` are scaled latents of the VAE, float32.
- ``anchor`` mixes the redrawn latent with the image's own: (redrawn + anchor * own) / (1 + anchor).
- K candidates come from K noise draws; without ``sample`` and at K = 1 the noise is a fixed one.
- ``temperature`` scales the noise of drawn candidates and of free sampling.

Precision: under a bfloat16 base the language model and the eyes run in bfloat16 autocast. LoRA,
connector, projector, denoiser and VAE hold float32 weights; what lies between a perturbed state and
the pixels runs outside autocast, because a bounded perturbation is smaller than bfloat16 resolves.

Shape suffixes: see ``base.py``; further L tokens of the
padded text, M = B*K rows, C channels and h side of a latent, W conditioning width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import peft
import torch
from torch import Tensor, nn

from unigame.backbones.base import BackboneFacts, Drawing, Prompts, PromptTokens, VisualStates
from unigame.backbones.common.hub_model import LORA_TARGETS
from unigame.backbones.common.pixels import PixelTwin, square_pixels
from unigame.backbones.common.understanding import (
    ReadingBackbone,
    configured_ends,
    full_precision,
)
from unigame.backbones.composed.config import CONFIG_FILE, CONNECTOR_FILE, ComposedConfig
from unigame.backbones.composed.connector import TrainedParts
from unigame.backbones.composed.diffusion import ImageBranch, fixed_noise
from unigame.backbones.composed.layout import QUERY, ComposedLayout
from unigame.backbones.composed.parts import copy_settings
from unigame.backbones.composed.vision import Reader
from unigame.errors import UserError
from unigame.seeds import seeds_of_rows

# Noise levels at which an evaluating model's generation loss is taken: the same every time.
EVALUATION_LEVELS = (0.125, 0.375, 0.625, 0.875)
TRAINABLE_PARTS = ("connector", "projector")
MERGED_LANGUAGE = "language"


class ComposedBackbone(ReadingBackbone):
    """All parts of a composed model, frozen.

    Args:
        config: what it is made of; written again by ``save_pretrained``.
        latent_shape: (C, h, h).
        language: the VLM or LLM.
        encoder: the separate vision encoder of an LLM.
        branch: denoiser and VAE.
        trained: queries, connector and projector.
        tokenizer: of the language model.
        reader: how it sees.
        vision_pixels: what its eyes read.
    """

    layout: ComposedLayout
    max_images = 4  # of up to 729 tokens each, in the 4,096 positions of older language models

    def __init__(
        self,
        config: ComposedConfig,
        latent_shape: tuple[int, int, int],
        *,
        language: Any,
        encoder: nn.Module | None,
        branch: ImageBranch,
        trained: TrainedParts,
        tokenizer: Any,
        reader: Reader,
        vision_pixels: PixelTwin,
    ) -> None:
        queries = config.connector.num_queries
        layout = ComposedLayout(tokenizer, reader, queries, configured_ends(language))
        super().__init__(language, tokenizer, layout, square_pixels(config.image_size))
        self.settings, self.reader = config, reader
        self.encoder, self.branch, self.trained = encoder, branch, trained
        self.vision_pixels = vision_pixels
        decoder = self.language_model
        self.language_name = next(
            name for name, part in language.named_modules() if part is decoder
        )
        self.latent_shape = latent_shape
        self.requires_grad_(False)
        self.facts = self._facts()
        self.eval()

    # ---- understanding -------------------------------------------------------------------------
    def read_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self._precision():
            return self.reader.read(self, self.vision_pixels.normalise(images))

    @property
    def reads_frozen(self) -> bool:
        # A projector of a text-only LLM may be warmed up.
        projector = self.trained.projector
        return projector is None or not any(p.requires_grad for p in projector.parameters())

    # ---- drawing -------------------------------------------------------------------------------
    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        return self.branch.encode(self.pixels.normalise(images))

    @torch.no_grad()
    def visual_states(
        self, images: Tensor, prompts: Prompts, *, codes: Tensor | None = None
    ) -> VisualStates:
        # The states of the queries behind each prompt. They follow from the prompt alone, at
        # inference as in training; the image itself enters the redrawing by its latent.
        rows, latents = self.rows_and_codes(images, prompts, codes)
        with self._evaluating():
            states_BNH = self._query_states(rows)
        return VisualStates(full_precision(states_BNH), latents)

    def draw(
        self,
        states_BNH: Tensor,
        codes: Tensor,
        *,
        num_candidates: int = 1,
        anchor: float = 0.0,
        temperature: float = 1.0,
        sample: bool = False,
        generator: torch.Generator | None = None,
        anchor_width: float = 0.0,
    ) -> Drawing:
        if num_candidates < 1:
            raise ValueError(f"num_candidates={num_candidates} draws nothing; give 1 or more")
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} leaves no noise; give a value above 0")
        condition_BNW = self.trained.connector(full_precision(states_BNH))
        condition_MNW = condition_BNW.repeat_interleave(num_candidates, dim=0)
        own = codes.to(condition_MNW).repeat_interleave(num_candidates, dim=0)
        if sample or num_candidates > 1:
            device = own.device if generator is None else generator.device
            shape = codes.shape
            draws = [
                torch.randn(shape, generator=generator, device=device)
                for _ in range(num_candidates)
            ]
            eps = torch.stack(draws, dim=1).flatten(0, 1).to(own)
        else:
            eps = fixed_noise(self.latent_shape, own).expand_as(own)
        draw = self.settings.draw
        redrawn = self.branch.redraw(
            own, condition_MNW, temperature * eps, draw.strength, draw.steps
        )
        latents = (redrawn + anchor * own) / (1 + anchor)
        return Drawing(self.pixels.unnormalise(self.branch.decode(latents)), latents)

    def render(self, compact: Tensor) -> Tensor:
        return self.pixels.unnormalise(self.branch.decode(compact.to(self.device)))

    def generation_loss(
        self, images: Tensor, captions: Prompts, *, codes: Tensor | None = None
    ) -> Tensor:
        # In training each sample gets one noise level and one noise from the global generator, as
        # dropout does (checkpoints keep it), and its caption is dropped at times for guidance. In
        # evaluation noise and levels are fixed ones, the same for all samples.
        rows, latents = self.rows_and_codes(images, captions, codes)
        if self.training:
            kept_B = (torch.rand(len(latents)) >= self.settings.caption_dropout).tolist()
            empty = self.preprocessor.prompt("")
            rows = [row if kept else empty for row, kept in zip(rows, kept_B, strict=True)]
        return self._noise_loss(latents, self._query_states(rows))

    def reconstruction_loss(
        self,
        images: Tensor | None,
        templates: Prompts,
        *,
        codes: Tensor | None = None,
        embeds: Tensor | None = None,
    ) -> Tensor:
        # Noise as in generation_loss; nothing is dropped: guidance is learnt from captions.
        rows, latents, read_BNH = self.reconstruction_rows(images, templates, codes, embeds)
        return self._noise_loss(latents, self._query_states(rows, read_BNH))

    def _noise_loss(self, latents: Tensor, states_BNH: Tensor) -> Tensor:
        """Squared error of what the denoiser predicts under the states of the queries, (B,)."""
        condition_BNW = self.trained.connector(full_precision(states_BNH))
        with self._precision():
            if self.training:
                level_B = self.branch.levels.spread(torch.rand(len(latents)))
                eps = torch.randn(latents.shape).to(latents)
                return self.branch.prediction_loss(latents, condition_BNW, eps, level_B)
            eps = fixed_noise(self.latent_shape, latents).expand_as(latents)
            losses = [
                self.branch.prediction_loss(
                    latents, condition_BNW, eps, torch.full((len(latents),), level)
                )
                for level in EVALUATION_LEVELS
            ]
        return torch.stack(losses).mean(0)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        guidance_scale: float = 5.0,
        temperature: float = 1.0,
        do_sample: bool = True,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        # Without do_sample every row starts from the same noise. Guidance 1 means none.
        seeds = seeds_of_rows(len(prompts), seed, seeds)
        return self.render(
            self.generate_compact(
                prompts,
                seeds=seeds if do_sample else [0] * len(prompts),
                guidance_scale=guidance_scale,
                temperature=temperature,
            )
        )

    @torch.no_grad()
    def generate_compact(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        guidance_scale: float = 5.0,
        temperature: float = 1.0,
    ) -> Tensor:
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} leaves no noise; give a value above 0")
        seeds = seeds_of_rows(len(prompts), 0, seeds)
        guided = guidance_scale != 1.0
        with self._evaluating(), self._precision():
            rows = self.prompt_tokens([*prompts, ""] if guided else prompts)
            condition_BNW = self.trained.connector(full_precision(self._query_states(rows)))
            plain = condition_BNW[-1:].expand(len(prompts), -1, -1) if guided else None
            return self.branch.sample(
                condition_BNW[: len(prompts)],
                plain,
                latent_shape=self.latent_shape,
                steps=self.settings.sample_steps,
                guidance_scale=guidance_scale,
                temperature=temperature,
                seeds=seeds,
            )

    def _query_states(
        self, prompts: Sequence[PromptTokens], read_BNH: Tensor | None = None
    ) -> Tensor:
        """Hidden states (after the final norm) of the N queries behind each prompt."""
        tokens = self.layout.pad([prompt.ids for prompt in prompts], "left", self.device)
        queries_BNH = self.trained.connector.queries_NH.expand(len(prompts), -1, -1)
        with self._precision():
            text_BLH = None if read_BNH is None else self.embed_rows(tokens, read_BNH)
            filled_BLH = self.fill_places(tokens, QUERY, queries_BNH, text_BLH)
            states_BLH = self.language_states(filled_BLH, tokens)
        return states_BLH[:, -self.layout.num_queries :]

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
        if isinstance(self.model, peft.PeftModel):
            return super().saved_files
        return CONFIG_FILE, CONNECTOR_FILE

    def save_pretrained(self, folder: str | Path) -> None:
        # Without an adapter, what trained: the frozen parts stay where config.json names them.
        if isinstance(self.model, peft.PeftModel):
            super().save_pretrained(folder)
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.settings.save(folder)
        self.trained.save(folder)

    def save_merged(self, folder: str | Path) -> None:
        # The language model is written beside, merged; other parts stay where they are.
        self._refuse_if_quantized("merged")
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
        # During warm-up it is the connector of a checkpoint of the warm-up.
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
        super().gradient_checkpointing_enable(
            gradient_checkpointing_kwargs, every_n_layers, offload
        )
        denoiser: Any = self.branch.denoiser
        denoiser.enable_gradient_checkpointing()  # acts in evaluation mode too
        self.branch.checkpointing = True

    def _facts(self) -> BackboneFacts:
        vision = "encoder" if self.encoder is not None else "vision tower and projector of the VLM"
        return BackboneFacts(
            family="composed",
            image_size=self.settings.image_size,
            num_image_tokens=self.reader.num_tokens,
            hidden_size=self.base.get_input_embeddings().embedding_dim,
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
