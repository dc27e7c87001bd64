"""The verbs of families that draw image codes one after another with their language model.

Questions, answers, teacher forcing, the discrete step and free decoding are the same for all of
them. A family says how it reads a picture, which hidden states predict codes, how they are scored,
and how vectors of its codebook become pixels (the methods under "what a family says").

Precision: under a bfloat16 base the language model runs in bfloat16 autocast, while LoRA weights,
losses, the image tokenizer's choice of codes and the scores of perturbed states are float32,
because a bounded perturbation is smaller than bfloat16 can resolve.

Shape suffixes: see ``base.py``; further L tokens of the padded text, T answer tokens of the batch,
M = B*K rows, A answer tokens of a row, E code width, U different pictures of a batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from unigame.backbones.base import Drawing, VisualStates
from unigame.backbones.chat_layout import ChatLayout, PaddedTokens, picture_order
from unigame.backbones.codebook import draw_codes
from unigame.backbones.decoding import (
    Sampling,
    SharedPrefix,
    decode_codes,
    decode_text,
    uniform_numbers,
)
from unigame.backbones.hub_model import HubModel
from unigame.backbones.pixels import PixelTwin
from unigame.backbones.prompts import CAPTION_QUESTION


class AutoregressiveBackbone(HubModel):
    """A ``HubModel`` with the verbs of the contract. See ``Backbone`` for their shapes."""

    def __init__(self, model: Any, processor: Any, layout: ChatLayout, pixels: PixelTwin) -> None:
        super().__init__(model, processor, layout, pixels)
        self.layout = layout

    # ---- what a family says --------------------------------------------------------------------
    @abstractmethod
    def image_logits(self, states_BNH: Tensor) -> Tensor:
        """Scores of every code at every position, (B, N, V), in float32 at least."""

    @abstractmethod
    def code_scores(self, states_H: Tensor) -> Tensor:
        """The same from hidden states of any leading shape, in the precision that is set."""

    @abstractmethod
    def image_states(self, prompts: Sequence[str], codes_BN: Tensor) -> Tensor:
        """Hidden states (after the final norm) at the N positions that predict the codes."""

    @abstractmethod
    def drawing_rows(self, prompts: Sequence[str], guided: bool) -> PaddedTokens:
        """Left-padded prompts; with guidance, their unconditional twins behind them."""

    @abstractmethod
    def feed_codes(self, codes_B1: Tensor, count: int) -> Tensor:
        """Embeddings (B, T, H) that go in after code number ``count``."""

    @abstractmethod
    def codebook(self) -> Tensor:
        """The vectors (V, E) that the decoder reads."""

    @abstractmethod
    def decode_vectors(self, vectors_MNE: Tensor) -> Tensor:
        """Codebook vectors -> images (M, 3, S, S) in [0, 1]. Differentiable."""

    def text_logits(self, states_H: Tensor) -> Tensor:
        """Scores of every token of the vocabulary as the next one of an answer."""
        return self.base.lm_head(states_H)

    # ---- understanding -------------------------------------------------------------------------
    def embed_images(self, images: Tensor) -> Tensor:
        """Tokens z = Proj(Enc(x)), (B, N, H): what the LM reads. Differentiable in images."""
        return self.read_images(images)[1]

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
        rows = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
        tokens = self.layout.pad(rows, "right", self.device)
        with self._precision():
            states_MLH = self.language_states(self.embed_rows(tokens, embeds_MNH), tokens)
            predicting = [
                (row, len(prompt) + i - 1)
                for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True))
                for i in range(len(target))
            ]
            index_2T = torch.tensor(predicting, device=self.device).T
            logits_TV = self.text_logits(states_MLH[index_2T[0], index_2T[1]])
        target_T = torch.tensor([t for target in targets for t in target], device=self.device)
        loss_T = F.cross_entropy(full_precision(logits_TV), target_T, reduction="none")
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
        With it, an image that several questions share is encoded once, and so is the start of
        their prompts.
        """
        if kwargs:
            raise TypeError(f"answer() decodes greedily and does not know {sorted(kwargs)}")
        if image_index is None:
            copies = _copies(len(images), len(questions))
            questions = [question for question in questions for _ in range(copies)]
            image_index = [[row] for row in range(len(images))]
        with self._evaluating(), self._precision():
            ids = decode_text(
                self.language_model,
                self.base.get_input_embeddings(),
                self.text_logits,
                **self._prompts(self.embed_images(images), questions, image_index),
                max_new_tokens=max_new_tokens,
                end_ids=self._end_ids(),
            )
        decode = self.layout.tokenizer.decode
        return [str(decode(row, skip_special_tokens=True)).strip() for row in ids]

    def caption(self, images: Tensor, *, max_new_tokens: int = 48) -> list[str]:
        """One description per image: the answer to ``CAPTION_QUESTION``."""
        return self.answer(images, [CAPTION_QUESTION] * len(images), max_new_tokens=max_new_tokens)

    # ---- generation ----------------------------------------------------------------------------
    @torch.no_grad()
    def visual_states(
        self, images: Tensor, prompts: Sequence[str], *, codes: Tensor | None = None
    ) -> VisualStates:
        """z_hat (B, N, H), float32, by ONE teacher-forced pass; LoRA on, dropout off."""
        codes_BN = self._codes_of(images, prompts, codes)
        with self._evaluating(), self._precision():
            states_BNH = self.image_states(prompts, codes_BN)
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
        )
        return Drawing(self.decode_vectors(drawn.vectors_MNE), drawn.codes_MN)

    def render(self, compact: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] from codes (B, N) of any integer type."""
        return self.decode_vectors(self.codebook()[compact.to(self.device).long()])

    def generation_loss(
        self, images: Tensor, captions: Sequence[str], *, codes: Tensor | None = None
    ) -> Tensor:
        """CE of each image's codes given its caption, (B,): mean over the N codes."""
        codes_BN = self._codes_of(images, captions, codes)
        with self._precision():
            logits_BNV = self.code_scores(self.image_states(captions, codes_BN))
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
        if seeds is not None and len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
        uniform_BN = None
        if seeds is not None and do_sample:
            uniform_BN = uniform_numbers(seeds, self.layout.num_image_tokens).to(self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        sampling = Sampling(guidance_scale, temperature, do_sample, generator, uniform_BN)
        tokens = self.drawing_rows(prompts, sampling.guided)
        with self._evaluating(), self._precision():
            return decode_codes(
                self.language_model,
                self.base.get_input_embeddings()(tokens.ids_BL),
                tokens,
                count=self.layout.num_image_tokens,
                scores=self.code_scores,
                feed=self.feed_codes,
                sampling=sampling,
            )

    # ---- inside --------------------------------------------------------------------------------
    def embed_rows(self, tokens: PaddedTokens, embeds_BNH: Tensor) -> Tensor:
        """Token embeddings with the placeholders replaced by image features, row by row."""
        text_BLH = self.base.get_input_embeddings()(tokens.ids_BL)
        dtype = torch.promote_types(text_BLH.dtype, embeds_BNH.dtype)  # keeps a float32 delta
        placeholder_BL1 = (tokens.ids_BL == self.layout.image_token_id).unsqueeze(-1)
        return text_BLH.to(dtype).masked_scatter(placeholder_BL1, embeds_BNH.to(dtype))

    def language_states(self, embeds_BLH: Tensor, tokens: PaddedTokens) -> Tensor:
        """Hidden states (B, L, H) after the final norm."""
        return self.language_model(
            inputs_embeds=embeds_BLH,
            attention_mask=tokens.mask_BL,
            position_ids=tokens.positions_BL,
            use_cache=False,
        ).last_hidden_state

    def _codes_of(self, images: Tensor, texts: Sequence[str], codes: Tensor | None) -> Tensor:
        codes_BN = self.encode_images(images) if codes is None else codes.to(self.device).long()
        if len(texts) != len(codes_BN):
            raise ValueError(f"{len(texts)} prompts but {len(codes_BN)} images")
        return codes_BN

    def _end_ids(self) -> set[int]:
        configured = self.base.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured]
        return {self.layout.eos_id, *(int(i) for i in listed if i is not None)}

    def _prompts(
        self, embeds_UNH: Tensor, questions: Sequence[str], image_index: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """What ``decode_text`` takes for questions about U images, the common start apart."""
        rows, order = [], []
        for question, images in zip(questions, image_index, strict=True):
            rows.append(self.layout.question_ids(question, len(images)))
            order.append([images[i] for i in picture_order(question, len(images))])
        first = [images[0] for images in order]
        length = self.layout.shared_start(rows) if len(set(first)) < len(first) else 0
        prefix = None
        if length:
            heads = {image: slot for slot, image in enumerate(dict.fromkeys(first))}
            starts = self.layout.pad([rows[0][:length]] * len(heads), "left", self.device)
            prefix = SharedPrefix(
                self.embed_rows(starts, embeds_UNH[list(heads)]),
                torch.tensor([heads[image] for image in first], device=self.device),
            )
            rows = [row[length:] for row in rows]
            order = [images[1:] for images in order]
        tokens = self.layout.pad(rows, "left", self.device)
        shown = [image for images in order for image in images]
        embeds_BLH = self.embed_rows(tokens, embeds_UNH[shown])
        return {"embeds_BLH": embeds_BLH, "tokens": tokens, "prefix": prefix}


def full_precision(values: Tensor) -> Tensor:
    """The values in float32, or in float64 where they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _copies(rows: int, texts: int) -> int:
    """K, where row b * K + k belongs to text b."""
    if texts == 0 or rows == 0 or rows % texts:
        raise ValueError(f"{rows} image rows cannot be shared out among {texts} questions")
    return rows // texts
