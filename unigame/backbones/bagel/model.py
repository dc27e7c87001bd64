"""BAGEL behind the backbone contract (arXiv 2505.14683), on modules of our own.

Eyes of SigLIP's kind read; latents of FLUX's image autoencoder are drawn by flow matching; one
language model with two experts does both. The game redraws an image in one pass: its latent is
noised to level t, the language model sees it behind the caption, and from its states z_hat

    x0 = x_t - t llm2vae(z_hat + delta)

follows exactly: the head is linear, and nothing has to be straightened through. What each setting
of the contract means here:

- ``codes`` and ``compact`` are scaled latents, float32.
- ``anchor`` mixes the redrawn latent with the image's own: (redrawn + anchor * own) / (1 + anchor).
- K candidates differ by latent noise of deviation ``temperature * draw_spread`` on top of x0. The
  states belong to one x_t, so noise cannot be drawn again below it; without ``sample`` and at K = 1
  the candidate is x0 itself.
- ``temperature`` scales that noise, and the noise that free drawing starts from.

LoRA sits on the understanding expert; ``target_modules: all-linear`` puts it on both.

Precision: under a bfloat16 base the language model and the eyes run in bfloat16 autocast. LoRA and
the image autoencoder hold float32 weights; what lies between a perturbed state and the pixels runs
outside autocast, because a bounded perturbation is smaller than bfloat16 resolves.

Shape suffixes: see ``base.py``; further L tokens of the padded text, M = B*K rows, C channels and
h, w sides of a latent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import peft
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unigame.backbones.bagel import flow
from unigame.backbones.bagel.captions import ReadCaptions
from unigame.backbones.bagel.configuration import BagelConfig
from unigame.backbones.bagel.files import write_vocabulary
from unigame.backbones.bagel.language import GEN, MoTModel
from unigame.backbones.bagel.layout import LATENT, BagelLayout
from unigame.backbones.bagel.modeling import BagelModel
from unigame.backbones.base import BackboneFacts, Drawing, Prompts, PromptTokens, VisualStates
from unigame.backbones.common.hub_model import LORA_TARGETS
from unigame.backbones.common.pixels import fitted_pixels
from unigame.backbones.common.understanding import ReadingBackbone, full_precision
from unigame.seeds import seeds_of_rows
from unigame.system.say import warn

GENERATION_EXPERT = "generation expert"
GUIDANCE = 4.0
"""Of free drawing, as the authors give it."""
PIXELS_AT_ONCE = 512 * 512
"""Pixels that the autoencoder convolves together, one picture at least."""
ATTENTION, MLP = LORA_TARGETS[:4], LORA_TARGETS[4:]
UNDERSTANDING = (*ATTENTION, *(f"mlp.{name}" for name in MLP))
GENERATION = (*(f"{name}{GEN}" for name in ATTENTION), *(f"mlp{GEN}.{name}" for name in MLP))


def pictures_at_once(height: int, width: int) -> int:
    """Pictures that the autoencoder convolves together."""
    return max(1, PIXELS_AT_ONCE // (height * width))


class BagelBackbone(ReadingBackbone):
    """A frozen BAGEL.

    Args:
        model: it is frozen here and used in place.
        tokenizer: of the same checkpoint.

    Raises:
        UserError: the tokenizer lacks BAGEL's marks.
    """

    layout: BagelLayout
    max_images = 4

    def __init__(self, model: BagelModel, tokenizer: Any) -> None:
        config = model.config
        layout = BagelLayout(tokenizer, config.num_image_tokens, config.num_latents)
        super().__init__(model, tokenizer, layout, fitted_pixels(*config.image_shape))
        self.vision_pixels = fitted_pixels(*config.vision_shape).to(self.device)
        _warn_of_shapes(config)
        self.facts = BackboneFacts(
            family="bagel",
            image_size=max(config.image_shape),
            num_image_tokens=config.num_image_tokens,
            hidden_size=config.llm_config.hidden_size,
            codebook_size=None,
            lora_targets=(*UNDERSTANDING, *GENERATION),
            frozen_parts=("eyes", "connector", "vae", GENERATION_EXPERT, "flow head", "lm_head"),
            dtype=self.dtype,
            num_parameters=sum(p.numel() for p in self.parameters()),
            num_state_tokens=config.num_latents,
            guidance_scale=GUIDANCE,
            rectangle=config.image_shape,
        )
        self.eval()

    @property
    def bagel(self) -> BagelModel:
        """The model; with LoRA its linear layers are PEFT's, in place."""
        return cast(BagelModel, self.base)

    @property
    def language_model(self) -> MoTModel:
        """The language model without its head."""
        return self.bagel.decoder

    def frozen_towers(self) -> list[Any]:
        return [self.bagel.eyes]

    def save_pretrained(self, folder: str | Path) -> None:
        """Also the files by which the authors' own code reads the tokenizer."""
        super().save_pretrained(folder)
        if not isinstance(self.model, peft.PeftModel):
            write_vocabulary(self.processor, Path(folder))

    # ---- understanding -------------------------------------------------------------------------
    def read_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self._precision():
            return self.bagel.read(self.vision_pixels.normalise(images))

    def _end_ids(self) -> set[int]:
        return {self.layout.eos_id, int(self.layout.tokenizer.eos_token_id)}

    # ---- drawing -------------------------------------------------------------------------------
    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        return self._in_parts(self.bagel.encode, self.pixels.normalise(images))

    @torch.no_grad()
    def visual_states(
        self, images: Tensor, prompts: Prompts, *, codes: Tensor | None = None
    ) -> VisualStates:
        rows, latents = self.rows_and_codes(images, prompts, codes)
        noisy, level_B = self._partly_noised(latents)
        with self._evaluating():
            states_BNH = self.latent_states(rows, noisy, level_B)
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
        states_BNH = full_precision(states_BNH)
        own = codes.to(states_BNH)
        noisy, level_B = self._partly_noised(own)
        redrawn = flow.clean(noisy, self.bagel.velocity(states_BNH, own.shape[-2]), level_B)
        redrawn = redrawn.repeat_interleave(num_candidates, dim=0)
        if sample or num_candidates > 1:
            device = own.device if generator is None else generator.device
            draws = [
                torch.randn(codes.shape, generator=generator, device=device)
                for _ in range(num_candidates)
            ]
            noise = torch.stack(draws, dim=1).flatten(0, 1).to(redrawn)
            redrawn = redrawn + temperature * self.bagel.config.draw_spread * noise
        own = own.repeat_interleave(num_candidates, dim=0)
        latents = (redrawn + anchor * own) / (1 + anchor)
        return Drawing(self._pixels_of(latents), latents)

    def render(self, compact: Tensor) -> Tensor:
        return self._pixels_of(full_precision(compact.to(self.device)))

    def generation_loss(
        self, images: Tensor, captions: Prompts, *, codes: Tensor | None = None
    ) -> Tensor:
        # In training each sample gets one noise level (sigmoid of a normal number) and one noise
        # from the global generator, as dropout does (checkpoints keep it), and its caption is left
        # out at times for guidance. In evaluation noise and levels are fixed ones.
        rows, latents = self.rows_and_codes(images, captions, codes)
        if self.training:
            kept_B = (torch.rand(len(latents)) >= self.bagel.config.caption_dropout).tolist()
            empty = self.preprocessor.prompt("")
            rows = [row if kept else empty for row, kept in zip(rows, kept_B, strict=True)]
        return self._flow_loss(rows, latents)

    def reconstruction_loss(
        self,
        images: Tensor | None,
        templates: Prompts,
        *,
        codes: Tensor | None = None,
        embeds: Tensor | None = None,
    ) -> Tensor:
        # Noise as in generation_loss; nothing is dropped: guidance is learnt from captions.
        return self._flow_loss(*self.reconstruction_rows(images, templates, codes, embeds))

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        guidance_scale: float = GUIDANCE,
        temperature: float = 1.0,
        do_sample: bool = True,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        # Without do_sample every row starts from the same noise. Guidance 1 means none.
        seeds = seeds_of_rows(len(prompts), seed, seeds)
        latents = self.generate_compact(
            prompts,
            seeds=seeds if do_sample else [0] * len(prompts),
            guidance_scale=guidance_scale,
            temperature=temperature,
        )
        return self.render(latents)

    @torch.no_grad()
    def generate_compact(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        guidance_scale: float = GUIDANCE,
        temperature: float = 1.0,
    ) -> Tensor:
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} leaves no noise; give a value above 0")
        settings = self.bagel.config
        seeds = seeds_of_rows(len(prompts), 0, seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(settings.latent_shape, generator=g) for g in generators])
        noise = temperature * noise.to(self.device, full_precision(self.bagel.llm2vae.bias).dtype)
        rows = self.prompt_tokens(prompts)
        plain = [self.preprocessor.prompt("")] * len(rows) if guidance_scale != 1.0 else []

        def velocity(latents: Tensor, level_B: Tensor, guided: bool) -> Tensor:
            if not guided or not plain:
                return of(latents, level_B)
            wanted, unguided = of(latents.repeat(2, 1, 1, 1), level_B.repeat(2)).chunk(2)
            return flow.guided(wanted, unguided, guidance_scale)

        def of(latents: Tensor, level_B: Tensor) -> Tensor:
            with self._precision():
                states_BNH = read.states(latents, level_B)
            return self.bagel.velocity(states_BNH, latents.shape[-2])

        with self._evaluating():
            with self._precision():
                read = ReadCaptions(self, [*rows, *plain])
            return flow.sample(
                noise,
                velocity,
                steps=settings.sample_steps,
                shift=settings.sample_shift,
                interval=settings.guidance_interval,
            )

    # ---- inside drawing ------------------------------------------------------------------------
    def latent_states(
        self,
        prompts: Sequence[PromptTokens],
        noisy_BChw: Tensor,
        level_B: Tensor,
        read_BNH: Tensor | None = None,
    ) -> Tensor:
        """States (B, N, H) behind the generation expert's last norm, at the places of latents.

        ``read_BNH`` fills the places of a picture in the prompts, where they have such places.
        """
        tokens = self.layout.pad([prompt.ids for prompt in prompts], "left", self.device)
        places = self.layout.latents(tokens)
        with self._precision():
            latents_BNH = self.bagel.latent_tokens(noisy_BChw, level_B.to(self.device))
            text_BLH = None if read_BNH is None else self.embed_rows(tokens, read_BNH)
            states_BLH = self.language_model(
                inputs_embeds=self.fill_places(tokens, LATENT, latents_BNH, text_BLH),
                attention_mask=tokens.mask_BL,
                position_ids=tokens.positions_BL,
                drawn=places,
            ).last_hidden_state
        return states_BLH[:, places]

    def _velocity(
        self,
        prompts: Sequence[PromptTokens],
        noisy_BChw: Tensor,
        level_B: Tensor,
        read_BNH: Tensor | None = None,
    ) -> Tensor:
        states_BNH = self.latent_states(prompts, noisy_BChw, level_B, read_BNH)
        return self.bagel.velocity(states_BNH, noisy_BChw.shape[-2])

    def _flow_loss(
        self, prompts: Sequence[PromptTokens], latents: Tensor, read_BNH: Tensor | None = None
    ) -> Tensor:
        """Mean squared error of the velocity, (B,)."""
        count, settings = len(latents), self.bagel.config
        if self.training:
            levels = [flow.shifted(torch.randn(count).sigmoid(), settings.timestep_shift)]
            noise = torch.randn(latents.shape).to(latents)
        else:
            levels = [torch.full((count,), level) for level in flow.EVALUATION_LEVELS]
            noise = flow.fixed_noise(settings.latent_shape, latents).expand_as(latents)
        losses = []
        for level_B in levels:
            noisy = flow.noised(latents, noise, level_B)
            error = self._velocity(prompts, noisy, level_B, read_BNH) - (noise - latents)
            losses.append(error.square().flatten(1).mean(-1))
        return torch.stack(losses).mean(0)

    def _partly_noised(self, latents_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """x_t of the game and t, (B,): always the same noise, so a challenge is deterministic."""
        level_B = torch.full((len(latents_BChw),), self.bagel.config.draw_strength)
        noise = flow.fixed_noise(latents_BChw.shape[1:], latents_BChw)
        return flow.noised(latents_BChw, noise.expand_as(latents_BChw), level_B), level_B

    def _pixels_of(self, latents_BChw: Tensor) -> Tensor:
        latents_BChw = latents_BChw.to(next(self.bagel.vae.parameters()).dtype)
        return self.pixels.unnormalise(self._in_parts(self.bagel.decode, latents_BChw))

    def _in_parts(self, convolve: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """``convolve`` a few pictures at a time, recomputed in backward under checkpointing.

        At full size its activations take gigabytes for each picture. The parts are the same with
        and without a gradient and checkpointing: a batch of another size may round otherwise, and
        then ``render`` does not repeat ``draw`` bit for bit.
        """
        parts = rows.split(pictures_at_once(*self.bagel.config.image_shape))
        if self.checkpointing and rows.requires_grad and torch.is_grad_enabled():
            done = [checkpoint(convolve, part, use_reentrant=False) for part in parts]
            return torch.cat(cast(list[Tensor], done))
        return torch.cat([convolve(part) for part in parts])

    # ---- what trains ---------------------------------------------------------------------------
    def add_lora(self, config: peft.LoraConfig | None = None) -> Self:
        # On the understanding expert; "all-linear" is both.
        default = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05)
        config = default if config is None else copy.deepcopy(config)
        wanted = config.target_modules
        if wanted is None or wanted == "all-linear":
            both = (*UNDERSTANDING, *GENERATION)
            config.target_modules = set(UNDERSTANDING if wanted is None else both)
        elif not isinstance(wanted, str):
            config.target_modules = {f"mlp.{name}" if name in MLP else name for name in wanted}
        super().add_lora(config)
        if not self.frozen_expert:
            frozen = tuple(part for part in self.facts.frozen_parts if part != GENERATION_EXPERT)
            self.facts = replace(self.facts, frozen_parts=frozen)
        return self

    @property
    def frozen_expert(self) -> str:
        trained = any(GEN in name and "lora_" in name for name, _ in self.named_parameters())
        return "" if trained else GENERATION_EXPERT


def _warn_of_shapes(config: BagelConfig) -> None:
    """Pictures are made as they are drawn first, and from there as they are read."""
    drawn, read = config.image_shape, config.vision_shape
    sizes = f"vision_size={config.vision_size} and image_size={config.image_size}"
    if max(read) > max(drawn):
        warn(
            f"{sizes}: pictures are made {config.image_size} px first, and then only enlarged; "
            "raise image_size, or lower vision_size"
        )
    shapes = [height / width for height, width in (drawn, read)]
    if max(shapes) > 1.05 * min(shapes):
        warn(
            f"{sizes} are of two shapes, so what is drawn is padded with grey to be read; give "
            "both about the same height / width"
        )
