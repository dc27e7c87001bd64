"""Drawing, of families whose language model draws image codes one after another.

Teacher forcing, the discrete step and free decoding are the same for all of them. A family says how
it reads a picture, which hidden states predict codes, how they are scored, and how vectors of its
codebook become pixels (the methods under "what a family says").

Precision: under a bfloat16 base the language model runs in bfloat16 autocast, while LoRA weights,
losses, the image tokenizer's choice of codes and the scores of perturbed states are float32,
because a bounded perturbation is smaller than bfloat16 can resolve.

Shape suffixes: see ``base.py``; further M = B*K rows, E code width, T tokens fed at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unigame.backbones.base import Drawing, Prompts, PromptTokens, VisualStates
from unigame.backbones.common.codebook import draw_codes
from unigame.backbones.common.decoding import Sampling, decode_codes, uniform_numbers
from unigame.backbones.common.layout import ChatLayout, PaddedTokens
from unigame.backbones.common.pixels import PixelTwin
from unigame.backbones.common.understanding import ReadingBackbone, full_precision
from unigame.seeds import seeds_of_rows


class AutoregressiveBackbone(ReadingBackbone):
    """A ``ReadingBackbone`` that draws codes. See ``Backbone`` for the verbs and their shapes.

    Args:
        model: a transformers model with ``model.vqmodel``, a language model and ``lm_head``.
        processor: its processor.
        layout: what turns text into token rows.
        pixels: the image processor's differentiable twin.
    """

    layout: ChatLayout
    lean_drawing = True
    """Draw through ``CpuLlama``, ``StaticLM`` and ``lean_decoder`` where they apply: the same
    pictures in less time, but for rounding. False: through transformers' own forward passes."""

    def __init__(self, model: Any, processor: Any, layout: ChatLayout, pixels: PixelTwin) -> None:
        super().__init__(model, processor, layout, pixels)
        if self.dtype == torch.bfloat16:
            model.model.vqmodel.float()  # bfloat16 distances pick other codes

    # ---- what a family says --------------------------------------------------------------------
    @abstractmethod
    def image_logits(self, states_BNH: Tensor) -> Tensor:
        """Scores of every code at every position, (B, N, V), in float32 at least."""

    @abstractmethod
    def code_scores(self, states_H: Tensor) -> Tensor:
        """The same from hidden states of any leading shape, in the precision that is set."""

    @abstractmethod
    def image_states(self, prompts: Sequence[PromptTokens], codes_BN: Tensor) -> Tensor:
        """Hidden states (after the final norm) at the N positions that predict the codes."""

    @abstractmethod
    def drawing_rows(self, prompts: Sequence[PromptTokens], guided: bool) -> PaddedTokens:
        """Left-padded prompts; with guidance, their unconditional twins behind them."""

    @abstractmethod
    def feed_codes(self, codes_B1: Tensor, count: int) -> Tensor:
        """Embeddings (B, T, H) that go in after code number ``count``."""

    @property
    def drawing_room(self) -> int:
        """Tokens that ``feed_codes`` makes of a picture's codes, at most."""
        return self.layout.num_image_tokens

    @abstractmethod
    def codebook(self) -> Tensor:
        """The vectors (V, E) that the decoder reads."""

    def kinship(self) -> Tensor:
        """Vectors (V, D) by which codes that mean nearly the same are near: the decoder's."""
        return self.codebook()

    @abstractmethod
    def decode_vectors(self, vectors_MNE: Tensor) -> Tensor:
        """Codebook vectors -> images (M, 3, S, S) in [0, 1]. Differentiable."""

    # ---- generation ----------------------------------------------------------------------------
    @torch.no_grad()
    def visual_states(
        self, images: Tensor, prompts: Prompts, *, codes: Tensor | None = None
    ) -> VisualStates:
        """z_hat (B, N, H), float32, by ONE teacher-forced pass; LoRA on, dropout off."""
        rows, codes_BN = self._rows_and_codes(images, prompts, codes)
        with self._evaluating(), self._precision():
            states_BNH = self.image_states(rows, codes_BN)
        return VisualStates(full_precision(states_BNH), codes_BN)

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
        hard: bool = True,
        anchor_width: float = 0.0,
    ) -> Drawing:
        """States -> candidate images, straight-through over the codebook. See the contract.

        ``hard=False`` decodes the softmax mixture itself: a smooth map whose gradient is exact,
        for checking the gradient. Float64 states on a float64 model stay float64.
        """
        drawn = draw_codes(
            self.image_logits(states_BNH),
            codes.to(states_BNH.device),
            self.codebook(),
            num_candidates=num_candidates,
            anchor=anchor,
            temperature=temperature,
            sample=sample,
            generator=generator,
            hard=hard,
            anchor_width=anchor_width,
            kinship_VD=self.kinship() if anchor_width > 0 else None,
        )
        return Drawing(self.decode_vectors(drawn.vectors_MNE), drawn.codes_MN)

    def render(self, compact: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] from codes (B, N) of any integer type."""
        return self.decode_vectors(self.codebook()[compact.to(self.device).long()])

    def generation_loss(
        self, images: Tensor, captions: Prompts, *, codes: Tensor | None = None
    ) -> Tensor:
        """CE of each image's codes given its caption, (B,): mean over the N codes."""
        rows, codes_BN = self._rows_and_codes(images, captions, codes)
        with self._precision():
            logits_BNV = self.code_scores(self.image_states(rows, codes_BN))
        loss_BN = F.cross_entropy(
            full_precision(logits_BNV).transpose(1, 2), codes_BN, reduction="none"
        )
        return loss_BN.mean(-1)

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
        """Free-running text -> image, (B, 3, S, S) in [0, 1]; the global generator is untouched."""
        return self.render(
            self.generate_codes(
                prompts,
                seed=seed,
                guidance_scale=guidance_scale,
                temperature=temperature,
                do_sample=do_sample,
                seeds=seeds,
            )
        )

    @torch.no_grad()
    def generate_codes(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        guidance_scale: float = 5.0,
        temperature: float = 1.0,
        do_sample: bool = True,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """The codes (B, N) that ``generate`` renders. Guidance 1 means none."""
        if do_sample and temperature <= 0:
            raise ValueError(f"temperature={temperature}: give a value above 0, or do_sample=False")
        seeds = seeds_of_rows(len(prompts), seed, seeds)
        uniform_BN = None
        if do_sample:
            uniform_BN = uniform_numbers(seeds, self.layout.num_image_tokens).to(self.device)
        sampling = Sampling(guidance_scale, temperature, uniform_BN)
        tokens = self.drawing_rows(self.prompt_tokens(prompts), sampling.guided)
        with self._evaluating(), self._precision():
            return decode_codes(
                self.language_model,
                self.base.get_input_embeddings()(tokens.ids_BL),
                tokens,
                count=self.layout.num_image_tokens,
                scores=self.code_scores,
                feed=self.feed_codes,
                sampling=sampling,
                room=self.drawing_room,
                lean=self.lean_drawing,
            )

    # ---- inside --------------------------------------------------------------------------------
    def _rows_and_codes(
        self, images: Tensor, prompts: Prompts, codes: Tensor | None
    ) -> tuple[list[PromptTokens], Tensor]:
        codes_BN = self.encode_images(images) if codes is None else codes.to(self.device).long()
        if len(prompts) != len(codes_BN):
            raise ValueError(f"{len(prompts)} prompts but {len(codes_BN)} images")
        return self.prompt_tokens(prompts), codes_BN
