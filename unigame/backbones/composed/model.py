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

Reading is that of ``understanding.py``. Shape suffixes: see ``base.py``; further L tokens of the
padded text, M = B*K rows, C channels and h side of a latent, W conditioning width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unigame.backbones.base import Drawing, Prompts, PromptTokens, VisualStates
from unigame.backbones.common.understanding import full_precision
from unigame.backbones.composed.core import ComposedCore
from unigame.backbones.composed.diffusion import fixed_noise
from unigame.backbones.composed.layout import QUERY
from unigame.seeds import seeds_of_rows

# Noise levels at which an evaluating model's generation loss is taken: the same every time.
EVALUATION_LEVELS = (0.125, 0.375, 0.625, 0.875)


class ComposedBackbone(ComposedCore):
    """What is particular to composed models. See ``Backbone`` for the shapes of the verbs."""

    # ---- understanding -------------------------------------------------------------------------
    def image_features(self, images: Tensor) -> Tensor:
        """Frozen vision features (B, N, D), before the projector. Differentiable in images."""
        return self.read_images(images)[0]

    def read_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Vision features (B, N, D) and the tokens z (B, N, H) made of them, in one pass."""
        with self._precision():
            return self.reader.read(self, self.vision_pixels.normalise(images))

    @property
    def reads_frozen(self) -> bool:
        """True unless the projector of a text-only LLM is being warmed up."""
        projector = self.trained.projector
        return projector is None or not any(p.requires_grad for p in projector.parameters())

    # ---- drawing -------------------------------------------------------------------------------
    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """The VAE: images -> scaled latents (B, C, h, h), in float32 at least. No gradient."""
        return self.branch.encode(self.pixels.normalise(images))

    @torch.no_grad()
    def visual_states(
        self, images: Tensor, prompts: Prompts, *, codes: Tensor | None = None
    ) -> VisualStates:
        """z_hat (B, N, H), float32: the states of the queries behind each prompt.

        They follow from the prompt alone, at inference as in training; the image itself enters the
        redrawing by its latent.
        """
        rows, latents = self._rows_and_latents(images, prompts, codes)
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
        """States -> candidate images, by noising the latents and denoising them again.

        See the module docstring for ``anchor``, ``temperature`` and the noise of K candidates.

        Raises:
            ValueError: ``num_candidates`` below 1 or ``temperature`` not above 0.
        """
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
        """Images (B, 3, S, S) in [0, 1] from scaled latents."""
        return self.pixels.unnormalise(self.branch.decode(compact.to(self.device)))

    def generation_loss(
        self, images: Tensor, captions: Prompts, *, codes: Tensor | None = None
    ) -> Tensor:
        """Mean squared error of the denoiser's prediction for each sample, (B,).

        In training each sample gets one noise level and one noise from the global generator, as
        dropout does (checkpoints keep it), and its caption is dropped at times for guidance. In
        evaluation noise and levels are fixed ones, the same for all samples.
        """
        rows, latents = self._rows_and_latents(images, captions, codes)
        if self.training:
            kept_B = (torch.rand(len(latents)) >= self.settings.caption_dropout).tolist()
            empty = self.preprocessor.prompt("")
            rows = [row if kept else empty for row, kept in zip(rows, kept_B, strict=True)]
        condition_BNW = self.trained.connector(full_precision(self._query_states(rows)))
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
        """Text -> image, (B, 3, S, S) in [0, 1], by the pipeline's scheduler.

        Row ``b`` starts from noise of its own seed (see ``Backbone.generate``), whatever its
        neighbours; without ``do_sample`` every row starts from the same noise. Guidance 1 means
        none.
        """
        seeds = seeds_of_rows(len(prompts), seed, seeds)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} leaves no noise; give a value above 0")
        guided = guidance_scale != 1.0
        with self._evaluating(), self._precision():
            rows = self.prompt_tokens([*prompts, ""] if guided else prompts)
            condition_BNW = self.trained.connector(full_precision(self._query_states(rows)))
            plain = condition_BNW[-1:].expand(len(prompts), -1, -1) if guided else None
            latents = self.branch.sample(
                condition_BNW[: len(prompts)],
                plain,
                latent_shape=self.latent_shape,
                steps=self.settings.sample_steps,
                guidance_scale=guidance_scale,
                temperature=temperature,
                seeds=seeds if do_sample else [0] * len(prompts),
            )
        return self.render(latents)

    # ---- inside --------------------------------------------------------------------------------
    def _rows_and_latents(
        self, images: Tensor, prompts: Prompts, codes: Tensor | None
    ) -> tuple[list[PromptTokens], Tensor]:
        latents = self.encode_images(images) if codes is None else codes.to(self.device)
        if len(prompts) != len(latents):
            raise ValueError(f"{len(prompts)} prompts but {len(latents)} images")
        return self.prompt_tokens(prompts), latents

    def _query_states(self, prompts: Sequence[PromptTokens]) -> Tensor:
        """Hidden states (after the final norm) of the N queries behind each prompt."""
        tokens = self.layout.pad([prompt.ids for prompt in prompts], "left", self.device)
        queries_BNH = self.trained.connector.queries_NH.expand(len(prompts), -1, -1)
        with self._precision():
            filled_BLH = self.fill_places(tokens, QUERY, queries_BNH)
            states_BLH = self.language_states(filled_BLH, tokens)
        return states_BLH[:, -self.layout.num_queries :]
