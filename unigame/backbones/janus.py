"""Janus and Janus-Pro behind the backbone contract, on transformers' own classes.

Understanding reads a SigLIP-type tower through an aligner; generation draws codes of a VQ image
tokenizer; one Llama-type language model serves both. LoRA sits on that language model; everything
else is frozen and stays in evaluation mode.

Precision: under a bfloat16 base the language model runs in bfloat16 autocast, while LoRA weights,
losses, the image tokenizer's choice of codes and the head that turns perturbed states into logits
are float32, because a bounded perturbation is smaller than bfloat16 can resolve.

Shape suffixes: see ``base.py``; further L tokens of the padded text, T answer tokens of the batch,
M = B*K rows, A answer tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unigame.backbones.base import Drawing, VisualStates
from unigame.backbones.chat_layout import PaddedTokens, picture_order
from unigame.backbones.codebook import draw_codes
from unigame.backbones.janus_core import JanusCore
from unigame.backbones.janus_decode import (
    SharedPrefix,
    decode_image_codes,
    decode_text,
    uniform_numbers,
)
from unigame.backbones.prompts import CAPTION_QUESTION


class JanusBackbone(JanusCore):
    """The verbs of the contract for Janus. See ``Backbone`` for their shapes."""

    max_images = 8

    # ---- understanding -------------------------------------------------------------------------
    def image_features(self, images: Tensor) -> Tensor:
        """Frozen vision features (B, N, D), before the projector. Differentiable in images."""
        with self._precision():
            pixels = self.pixels.normalise(images)
            return self.janus.model.vision_model(pixel_values=pixels).last_hidden_state

    def embed_images(self, images: Tensor) -> Tensor:
        """Tokens z = Proj(Enc(x)), (B, N, H): what the LM reads. Differentiable in images."""
        return self.read_images(images)[1]

    def read_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Vision features (B, N, D) and the tokens z (B, N, H) made of them, in one pass."""
        features = self.image_features(images)
        with self._precision():
            return features, self.janus.model.aligner(features)

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
            states_MLH = self._language_states(self._embed(tokens, embeds_MNH), tokens)
            predicting = [
                (row, len(prompt) + i - 1)
                for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True))
                for i in range(len(target))
            ]
            index_2T = torch.tensor(predicting, device=self.device).T
            logits_TV = self.janus.lm_head(states_MLH[index_2T[0], index_2T[1]])
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
                self.janus,
                **self._prompts(self.embed_images(images), questions, image_index),
                max_new_tokens=max_new_tokens,
                end_ids=self._end_ids(),
            )
        decode = self.processor.tokenizer.decode
        return [str(decode(row, skip_special_tokens=True)).strip() for row in ids]

    def caption(self, images: Tensor, *, max_new_tokens: int = 48) -> list[str]:
        """One description per image: the answer to ``CAPTION_QUESTION``."""
        return self.answer(images, [CAPTION_QUESTION] * len(images), max_new_tokens=max_new_tokens)

    # ---- generation ----------------------------------------------------------------------------
    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """The image tokenizer: images -> codes (B, N), in float32 at least. No gradient."""
        with torch.autocast(self.device.type, enabled=False):
            encoded = self.janus.model.vqmodel.encode(self.pixels.normalise(images))
        return encoded.image_tokens.view(len(images), -1)

    @torch.no_grad()
    def visual_states(
        self, images: Tensor, prompts: Sequence[str], *, codes: Tensor | None = None
    ) -> VisualStates:
        """z_hat (B, N, H), float32, by ONE teacher-forced pass; LoRA on, dropout off."""
        codes_BN = self.encode_images(images) if codes is None else codes.to(self.device).long()
        with self._evaluating():
            states_BNH = self._image_states(prompts, codes_BN)
        return VisualStates(_full_precision(states_BNH), codes_BN)

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
            self._codebook(),
            num_candidates=num_candidates,
            anchor=anchor,
            temperature=temperature,
            sample=sample,
            generator=generator,
            hard=hard,
        )
        if self.checkpointing and drawn.vectors_MNE.requires_grad:
            images = checkpoint(self._decode, drawn.vectors_MNE, use_reentrant=False)
        else:
            images = self._decode(drawn.vectors_MNE)
        return Drawing(cast(Tensor, images), drawn.codes_MN)

    def image_logits(self, states_BNH: Tensor) -> Tensor:
        """Scores of every code at every position, (B, N, V), in float32 at least.

        The head runs outside autocast, on weights raised to float32: in bfloat16 the rounding of
        ``z_hat + delta`` would swallow a delta of norm 0.01.
        """
        head = self.janus.model.generation_head
        states_BNH = _full_precision(states_BNH)
        weights = {name: p.to(states_BNH.dtype) for name, p in head.named_parameters()}
        with torch.autocast(states_BNH.device.type, enabled=False):
            return torch.func.functional_call(head, weights, (states_BNH,))

    def render(self, compact: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] from codes (B, N) of any integer type."""
        return self._decode(self._codebook()[compact.to(self.device).long()])

    def generation_loss(
        self, images: Tensor, captions: Sequence[str], *, codes: Tensor | None = None
    ) -> Tensor:
        """CE of each image's codes given its caption, (B,): mean over the N codes."""
        codes_BN = self.encode_images(images) if codes is None else codes.to(self.device).long()
        states_BNH = self._image_states(captions, codes_BN)
        with self._precision():
            logits_BNV = self.janus.model.generation_head(states_BNH)
        loss_BN = F.cross_entropy(
            _full_precision(logits_BNV).transpose(1, 2), codes_BN, reduction="none"
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
        rows = [self.layout.prompt_ids(prompt) for prompt in prompts]
        uniform_BN = None
        if seeds is not None and do_sample:
            uniform_BN = uniform_numbers(seeds, self.layout.num_image_tokens).to(self.device)
        with self._evaluating(), self._precision():
            return decode_image_codes(
                self.janus,
                self.layout,
                self.layout.pad(rows, "left", self.device),
                generator=torch.Generator(self.device).manual_seed(seed),
                guidance_scale=guidance_scale,
                temperature=temperature,
                do_sample=do_sample,
                uniform_BN=uniform_BN,
            )

    # ---- inside --------------------------------------------------------------------------------
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
                self._embed(starts, embeds_UNH[list(heads)]),
                torch.tensor([heads[image] for image in first], device=self.device),
            )
            rows = [row[length:] for row in rows]
            order = [images[1:] for images in order]
        tokens = self.layout.pad(rows, "left", self.device)
        shown = [image for images in order for image in images]
        embeds_BLH = self._embed(tokens, embeds_UNH[shown])
        return {"embeds_BLH": embeds_BLH, "tokens": tokens, "prefix": prefix}

    def _embed(self, tokens: PaddedTokens, embeds_BNH: Tensor) -> Tensor:
        """Token embeddings with the placeholders replaced by image features, row by row."""
        text_BLH = self.janus.get_input_embeddings()(tokens.ids_BL)
        dtype = torch.promote_types(text_BLH.dtype, embeds_BNH.dtype)  # keeps a float32 delta
        placeholder_BL1 = (tokens.ids_BL == self.layout.image_token_id).unsqueeze(-1)
        return text_BLH.to(dtype).masked_scatter(placeholder_BL1, embeds_BNH.to(dtype))

    def _language_states(self, embeds_BLH: Tensor, tokens: PaddedTokens) -> Tensor:
        return self.janus.model.language_model(
            inputs_embeds=embeds_BLH,
            attention_mask=tokens.mask_BL,
            position_ids=tokens.positions_BL,
            use_cache=False,
        ).last_hidden_state

    def _image_states(self, prompts: Sequence[str], codes_BN: Tensor) -> Tensor:
        """Hidden states (after the final norm) at the N positions that predict the codes."""
        if len(prompts) != len(codes_BN):
            raise ValueError(f"{len(prompts)} prompts but {len(codes_BN)} images")
        rows = [self.layout.prompt_ids(prompt) for prompt in prompts]
        # The codes' places hold padding ids only until their embeddings are put there.
        shifted = [self.layout.pad_id] * (codes_BN.shape[1] - 1)
        tokens = self.layout.pad([row + shifted for row in rows], "left", self.device)
        with self._precision():
            embeds_BLH = self.janus.get_input_embeddings()(tokens.ids_BL)
            drawn = self.janus.prepare_embeddings_for_image_generation(codes_BN[:, :-1])
            text_BLH = embeds_BLH[:, : embeds_BLH.shape[1] - drawn.shape[1]]
            embeds_BLH = torch.cat([text_BLH, drawn.to(text_BLH.dtype)], dim=1)
            return self._language_states(embeds_BLH, tokens)[:, -codes_BN.shape[1] :]

    def _codebook(self) -> Tensor:
        """Vectors (V, E) of unit norm, as the class's decoder expects them."""
        return F.normalize(self.janus.model.vqmodel.quantize.embedding.weight, p=2, dim=-1)

    def _decode(self, vectors_MNE: Tensor) -> Tensor:
        """Codebook vectors (M, N, E) -> images (M, 3, S, S) in [0, 1]. Differentiable."""
        vq = self.janus.model.vqmodel
        height, width = vq.quantize.quant_state_dims
        grid = vectors_MNE.transpose(1, 2).unflatten(2, (height, width)).contiguous()
        with self._precision():
            pixels = vq.decoder(vq.post_quant_conv(grid))
        return self.pixels.unnormalise(pixels)


def _copies(rows: int, texts: int) -> int:
    """K, where row b * K + k belongs to text b."""
    if texts == 0 or rows == 0 or rows % texts:
        raise ValueError(f"{rows} image rows cannot be shared out among {texts} questions")
    return rows // texts


def _full_precision(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
