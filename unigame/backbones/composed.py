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

Shape suffixes: see ``base.py``; further L tokens of the padded text, T answer tokens of the batch,
M = B*K rows, A answer tokens of a row, C channels and h side of a latent, W conditioning width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from unigame.backbones.base import Drawing, VisualStates
from unigame.backbones.composed_core import ComposedCore
from unigame.backbones.composed_decode import decode_text
from unigame.backbones.composed_diffusion import fixed_noise
from unigame.backbones.composed_layout import IMAGE, QUERY, Rows

# Noise levels at which an evaluating model's generation loss is taken: the same every time.
EVALUATION_LEVELS = (0.125, 0.375, 0.625, 0.875)


class ComposedBackbone(ComposedCore):
    """The verbs of the contract for composed models. See ``Backbone`` for their shapes."""

    # ---- understanding -------------------------------------------------------------------------
    def image_features(self, images: Tensor) -> Tensor:
        """Frozen vision features (B, N, D), before the projector. Differentiable in images."""
        return self.read_images(images)[0]

    def embed_images(self, images: Tensor) -> Tensor:
        """Tokens z = Proj(Enc(x)), (B, N, H): what the LM reads. Differentiable in images."""
        return self.read_images(images)[1]

    def read_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Vision features (B, N, D) and the tokens z (B, N, H) made of them, in one pass."""
        with self._precision():
            return self.reader.read(self, self.vision_pixels.normalise(images))

    @property
    def reads_frozen(self) -> bool:
        """True unless the projector of a text-only LLM is being warmed up."""
        projector = self.trained.projector
        return projector is None or not any(p.requires_grad for p in projector.parameters())

    def answer_loss(
        self,
        images: Tensor | None,
        questions: Sequence[str],
        answers: Sequence[str],
        *,
        embeds: Tensor | None = None,
    ) -> Tensor:
        """CE of each true answer, (M,): mean over its tokens and end mark. See the contract.

        Raises:
            ValueError: both or neither of ``images`` and ``embeds``; rows that are no multiple of
                the questions; not one answer per question.
        """
        if (images is None) == (embeds is None):
            raise ValueError("give either images or embeds to answer_loss, and not both")
        embeds_MNH = self.embed_images(images) if images is not None else cast(Tensor, embeds)
        if len(questions) != len(answers):
            raise ValueError(f"{len(questions)} questions but {len(answers)} answers")
        copies = _copies(len(embeds_MNH), len(questions))
        prompts, targets = [], []
        for question, answer in zip(questions, answers, strict=True):
            prompts += [self.layout.question_ids(question)] * copies
            targets += [self.layout.answer_ids(question, answer)] * copies
        rows = self.layout.pad(
            [prompt + target for prompt, target in zip(prompts, targets, strict=True)],
            "right",
            self.device,
        )
        with self._precision():
            states_MLH = self._language_states(self._embed(rows, embeds_MNH), rows)
            predicting = [
                (row, len(prompt) + i - 1)
                for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True))
                for i in range(len(target))
            ]
            index_2T = torch.tensor(predicting, device=self.device).T
            logits_TV = self.language.get_output_embeddings()(states_MLH[index_2T[0], index_2T[1]])
        target_T = torch.tensor([t for target in targets for t in target], device=self.device)
        loss_T = F.cross_entropy(_full_precision(logits_TV), target_T, reduction="none")
        lengths_M = torch.tensor([len(target) for target in targets], device=self.device)
        slots_A = torch.arange(max(len(target) for target in targets), device=self.device)
        filled_MA = slots_A < lengths_M[:, None]
        loss_MA = torch.zeros(filled_MA.shape, dtype=loss_T.dtype, device=self.device)
        return loss_MA.masked_scatter(filled_MA, loss_T).sum(-1) / lengths_M

    def answer_lengths(self, questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Tokens of each answer, its end mark included, (B,), int64."""
        pairs = zip(questions, answers, strict=True)
        return torch.tensor([len(self.layout.answer_ids(q, a)) for q, a in pairs])

    @torch.no_grad()
    def answer(
        self,
        images: Tensor,
        questions: Sequence[str],
        *,
        max_new_tokens: int = 16,
        image_index: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Greedy answers, one stripped string per question; batched and cached. No gradient.

        Without ``image_index``, ``images`` may have K rows per question, as in ``answer_loss``.

        Raises:
            ValueError: ``image_index`` shows a question another number of pictures than one.
        """
        if kwargs:
            raise TypeError(f"answer() decodes greedily and does not know {sorted(kwargs)}")
        if image_index is None:
            copies = _copies(len(images), len(questions))
            questions = [question for question in questions for _ in range(copies)]
            image_index = [[row] for row in range(len(images))]
        if any(len(shown) != 1 for shown in image_index):
            raise ValueError("a composed model is shown one picture for each question")
        texts = [self.layout.question_ids(question) for question in questions]
        rows = self.layout.pad(texts, "left", self.device)
        with self._evaluating(), self._precision():
            ids = decode_text(
                self.decoder,
                self.language.get_input_embeddings(),
                self.language.get_output_embeddings(),
                self._embed(rows, self.embed_images(images)[[shown[0] for shown in image_index]]),
                rows,
                max_new_tokens=max_new_tokens,
                end_ids=self.layout.end_ids,
            )
        decode = self.processor.decode
        return [str(decode(row, skip_special_tokens=True)).strip() for row in ids]

    # ---- drawing -------------------------------------------------------------------------------
    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """The VAE: images -> scaled latents (B, C, h, h), in float32 at least. No gradient."""
        return self.branch.encode(self.pixels.normalise(images))

    @torch.no_grad()
    def visual_states(
        self, images: Tensor, prompts: Sequence[str], *, codes: Tensor | None = None
    ) -> VisualStates:
        """z_hat (B, N, H), float32: the states of the queries behind each prompt.

        They follow from the prompt alone, at inference as in training; the image itself enters the
        redrawing by its latent.
        """
        latents = self.encode_images(images) if codes is None else codes.to(self.device)
        if len(prompts) != len(latents):
            raise ValueError(f"{len(prompts)} prompts but {len(latents)} images")
        with self._evaluating():
            states_BNH = self._query_states(prompts)
        return VisualStates(_full_precision(states_BNH), latents)

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
        condition_BNW = self.trained.connector(_full_precision(states_BNH))
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
        self, images: Tensor, captions: Sequence[str], *, codes: Tensor | None = None
    ) -> Tensor:
        """Mean squared error of the denoiser's prediction for each sample, (B,).

        In training each sample gets one noise level and one noise from the global generator, as
        dropout does (checkpoints keep it), and its caption is dropped at times for guidance. In
        evaluation noise and levels are fixed ones, the same for all samples.
        """
        latents = self.encode_images(images) if codes is None else codes.to(self.device)
        if len(captions) != len(latents):
            raise ValueError(f"{len(captions)} captions but {len(latents)} images")
        if self.training:
            kept_B = (torch.rand(len(latents)) >= self.settings.caption_dropout).tolist()
            captions = [text if kept else "" for text, kept in zip(captions, kept_B, strict=True)]
        condition_BNW = self.trained.connector(_full_precision(self._query_states(captions)))
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

        Row ``b`` starts from noise of seed ``seeds[b]`` (by default ``seed + b``), whatever its
        neighbours; without ``do_sample`` every row starts from the same noise. Guidance 1 means
        none.
        """
        if seeds is not None and len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
        seeds = [seed + b for b in range(len(prompts))] if seeds is None else seeds
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} leaves no noise; give a value above 0")
        guided = guidance_scale != 1.0
        with self._evaluating(), self._precision():
            texts = [*prompts, ""] if guided else list(prompts)
            condition_BNW = self.trained.connector(_full_precision(self._query_states(texts)))
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
    def _embed(self, rows: Rows, image_MNH: Tensor | None = None) -> Tensor:
        """Token embeddings with image tokens and queries at their places, row by row."""
        text_BLH = self.language.get_input_embeddings()(rows.ids_BL.clamp(min=0))
        placed = text_BLH
        for mark, values in ((IMAGE, image_MNH), (QUERY, self.trained.connector.queries_NH)):
            place_BL1 = (rows.ids_BL == mark).unsqueeze(-1)
            if values is None or not place_BL1.any():
                continue
            dtype = torch.promote_types(placed.dtype, values.dtype)  # keeps a float32 delta
            if mark == QUERY:
                values = values.expand(len(rows.ids_BL), -1, -1)
            placed = placed.to(dtype).masked_scatter(place_BL1, values.to(dtype))
        return placed

    def _language_states(self, embeds_BLH: Tensor, rows: Rows) -> Tensor:
        return self.decoder(
            inputs_embeds=embeds_BLH,
            attention_mask=rows.mask_BL,
            position_ids=rows.positions,
            use_cache=False,
        ).last_hidden_state

    def _query_states(self, prompts: Sequence[str]) -> Tensor:
        """Hidden states (after the final norm) of the N queries behind each prompt."""
        texts = [self.layout.prompt_ids(prompt) for prompt in prompts]
        rows = self.layout.pad(texts, "left", self.device)
        with self._precision():
            states_BLH = self._language_states(self._embed(rows), rows)
        return states_BLH[:, -self.layout.num_queries :]


def _copies(rows: int, texts: int) -> int:
    """K, where row b * K + k belongs to text b."""
    if texts == 0 or rows == 0 or rows % texts:
        raise ValueError(f"{rows} image rows cannot be shared out among {texts} questions")
    return rows // texts


def _full_precision(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
