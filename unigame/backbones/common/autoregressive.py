"""Drawing, of families whose language model draws image codes one after another.

``AutoregressiveBackbone`` has what is the same for all of them: teacher forcing, the discrete step
and free decoding. ``EarlyFusionBackbone`` is for those that read pictures by the same codes, as
tokens of the text: Emu3 and Chameleon.

Precision: under a bfloat16 base the language model runs in bfloat16 autocast, while LoRA weights,
losses, the image tokenizer's choice of codes and the scores of perturbed states are float32,
because a bounded perturbation is smaller than bfloat16 can resolve.

Shape suffixes: see ``base.py``; further M = B*K rows, E code width, T tokens fed at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unigame.backbones.base import BackboneFacts, Drawing, Prompts, PromptTokens, VisualStates
from unigame.backbones.common.codes import draw_codes, nearest_codes, read_codes, soft_codes
from unigame.backbones.common.decoding import Sampling, decode_codes, uniform_numbers
from unigame.backbones.common.hub_model import LORA_TARGETS
from unigame.backbones.common.layout import ChatLayout, PaddedTokens
from unigame.backbones.common.pixels import PixelTwin
from unigame.backbones.common.understanding import ReadingBackbone, full_precision
from unigame.errors import UserError
from unigame.seeds import seeds_of_rows

TOKENIZER = "vqmodel"
"""The image tokenizer's name in ``model.model``. Loaders read it in float32 (``load_weights``)."""
PIXELS_AT_ONCE = 512 * 512
"""Pixels that an early-fusion model's image tokenizer convolves at once, one picture at least."""


class AutoregressiveBackbone(ReadingBackbone):
    """A ``ReadingBackbone`` that draws codes.

    Args:
        model: a transformers model with ``model.vqmodel``, a language model and ``lm_head``.
        processor: see ``HubModel``.
        layout: see ``ReadingBackbone``.
        pixels: see ``HubModel``.
    """

    layout: ChatLayout
    lean_drawing = True
    """Draw through ``CpuLlama``, ``StaticLM`` and ``lean_decoder`` where they apply: the same
    pictures in less time, but for rounding. False: through transformers' own forward passes."""

    def __init__(self, model: Any, processor: Any, layout: ChatLayout, pixels: PixelTwin) -> None:
        super().__init__(model, processor, layout, pixels)
        if self.dtype == torch.bfloat16:
            # bfloat16 distances pick other codes. Weights that a loader rounded stay rounded: those
            # of a model that the caller loaded.
            model.model.get_submodule(TOKENIZER).float()

    # ---- what a family says --------------------------------------------------------------------
    @abstractmethod
    def image_logits(self, states_BNH: Tensor) -> Tensor:
        """Scores of every code at every position, (B, N, V), in float32 at least.

        The head runs outside autocast, on weights raised to float32: in bfloat16 the rounding of
        ``z_hat + delta`` would swallow a delta of norm 0.01.
        """

    @abstractmethod
    def code_scores(self, states_H: Tensor) -> Tensor:
        """The same from hidden states of any leading shape, in the precision that is set."""

    @abstractmethod
    def image_states(
        self, prompts: Sequence[PromptTokens], codes_BN: Tensor, read_BNH: Tensor | None = None
    ) -> Tensor:
        """Hidden states (after the final norm) at the N positions that predict the codes.

        ``read_BNH`` fills the places of a picture in the prompts, where they have such places.
        """

    @abstractmethod
    def drawing_rows(self, prompts: Sequence[PromptTokens], guided: bool) -> PaddedTokens:
        """Left-padded prompts; with guidance, their unconditional twins behind them."""

    @abstractmethod
    def feed_codes(self, codes_B1: Tensor, count: int) -> Tensor:
        """Embeddings (B, T, H) that go in after code number ``count``."""

    @abstractmethod
    def codebook(self) -> Tensor:
        """The vectors (V, E) that the decoder reads."""

    @abstractmethod
    def kinship(self) -> Tensor:
        """Vectors (V, D) by which codes that mean nearly the same are near."""

    @abstractmethod
    def decode_vectors(self, vectors_MNE: Tensor) -> Tensor:
        """Codebook vectors -> images (M, 3, S, S) in [0, 1]. Differentiable."""

    def _facts(self, family: str) -> BackboneFacts:
        return BackboneFacts(
            family=family,
            image_size=self.pixels.image_size,
            num_image_tokens=self.layout.num_image_tokens,
            hidden_size=self.base.get_input_embeddings().embedding_dim,
            codebook_size=len(self.codebook()),
            lora_targets=LORA_TARGETS,
            frozen_parts=self.frozen_parts,
            dtype=self.dtype,
            num_parameters=sum(p.numel() for p in self.parameters()),
        )

    # ---- the verbs -----------------------------------------------------------------------------
    @torch.no_grad()
    def visual_states(
        self, images: Tensor, prompts: Prompts, *, codes: Tensor | None = None
    ) -> VisualStates:
        rows, codes_BN = self.rows_and_codes(images, prompts, codes)
        with self._evaluating(), self._precision():
            states_BNH = self.image_states(rows, codes_BN)
        return VisualStates(full_precision(states_BNH), codes_BN)

    def draw(self, states_BNH: Tensor, codes: Tensor, **choice: Any) -> Drawing:
        # hard=False decodes the softmax mixture itself: a smooth map, for checking the gradient.
        # Float64 states on a float64 model stay float64.
        logits_BNV = self.image_logits(states_BNH)
        if choice.get("anchor_width"):
            choice["kinship_VD"] = self.kinship()
        drawn = draw_codes(logits_BNV, codes.to(states_BNH.device), self.codebook(), **choice)
        return Drawing(self.decode_vectors(drawn.vectors_MNE), drawn.codes_MN)

    def render(self, compact: Tensor) -> Tensor:
        return self.decode_vectors(self.codebook()[compact.to(self.device).long()])

    def generation_loss(
        self, images: Tensor, captions: Prompts, *, codes: Tensor | None = None
    ) -> Tensor:
        return self._code_loss(*self.rows_and_codes(images, captions, codes))

    def reconstruction_loss(
        self,
        images: Tensor | None,
        templates: Prompts,
        *,
        codes: Tensor | None = None,
        embeds: Tensor | None = None,
    ) -> Tensor:
        return self._code_loss(*self.reconstruction_rows(images, templates, codes, embeds))

    def _code_loss(
        self, rows: Sequence[PromptTokens], codes_BN: Tensor, read_BNH: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy of the codes behind each prompt, (B,)."""
        with self._precision():
            logits_BNV = self.code_scores(self.image_states(rows, codes_BN, read_BNH))
        logits_BVN = full_precision(logits_BNV).transpose(1, 2)
        return F.cross_entropy(logits_BVN, codes_BN, reduction="none").mean(-1)

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
        codes_BN = self.generate_codes(
            prompts,
            seed=seed,
            guidance_scale=guidance_scale,
            temperature=temperature,
            do_sample=do_sample,
            seeds=seeds,
        )
        return self.render(codes_BN)

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
        count = self.layout.num_image_tokens
        uniform_BN = uniform_numbers(seeds, count).to(self.device) if do_sample else None
        sampling = Sampling(guidance_scale, temperature, uniform_BN)
        tokens = self.drawing_rows(self.prompt_tokens(prompts), sampling.guided)
        with self._evaluating(), self._precision():
            return decode_codes(
                self.language_model,
                self.base.get_input_embeddings()(tokens.ids_BL),
                tokens,
                count=count,
                scores=self.code_scores,
                feed=self.feed_codes,
                sampling=sampling,
                room=self.layout.image_span,
                lean=self.lean_drawing,
            )

    def prompt_embeds(self, tokens: PaddedTokens, read_BNH: Tensor | None) -> Tensor:
        """Token embeddings (B, L, H), with what was read of a picture in its places."""
        if read_BNH is None:
            return cast(Tensor, self.base.get_input_embeddings()(tokens.ids_BL))
        return self.embed_rows(tokens, read_BNH)

    def generate_compact(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        guidance_scale: float = 5.0,
        temperature: float = 1.0,
    ) -> Tensor:
        return self.generate_codes(
            prompts, seeds=seeds, guidance_scale=guidance_scale, temperature=temperature
        )

    def _room_for(self, prompts: Sequence[PromptTokens], count: int) -> PaddedTokens:
        """Left-padded prompts, and behind each ``count`` places that hold padding ids yet."""
        places = (self.layout.pad_id,) * count
        return self.layout.pad([prompt.ids + places for prompt in prompts], "left", self.device)


class EarlyFusionBackbone(AutoregressiveBackbone):
    """Codes of one image tokenizer stand in the text as ordinary tokens, read or drawn.

    So z = Proj(Enc(x)) are the embeddings of the picture's codes, and the gradient of L_C passes
    two discrete steps: drawing, and the tokenizer's choice of codes when the drawn pixels are read
    again. Both are straight-through. A family says how its tokenizer convolves.
    """

    token_V: Tensor
    """Vocabulary id of every image code."""
    reads_codes = True

    @abstractmethod
    def _encode(self, pixels_B3SS: Tensor) -> Tensor:
        """Normalised pixels -> latents (B, N, E) before quantisation. Differentiable."""

    @abstractmethod
    def _decode(self, vectors_MNE: Tensor) -> Tensor:
        """Codebook vectors -> normalised pixels (M, 3, S, S), in the precision that is set."""

    def set_tokens(self, token_V: Tensor) -> None:
        """Say which vocabulary id every image code has."""
        self.register_buffer("token_V", token_V.to(self.device), persistent=False)
        first = int(token_V[0])
        in_order = torch.equal(token_V.cpu(), torch.arange(first, first + len(token_V)))
        self._rows = slice(first, first + len(token_V)) if in_order else None

    def image_rows(self, weight: Tensor) -> Tensor:
        """The rows (V, H) of an embedding or head that belong to image codes, in their order.

        A view where the vocabulary holds the codes in one piece.
        """
        return weight[self.token_V] if self._rows is None else weight[self._rows]

    # ---- reading -------------------------------------------------------------------------------
    def image_features(self, images: Tensor) -> Tensor:
        # The tokenizer's latents, outside autocast: in bfloat16 the nearest code is another one.
        pixels = self.pixels.normalise(images).to(self.codebook().dtype)
        with torch.autocast(self.device.type, enabled=False):
            return self._in_parts(self._encode, pixels)

    def read_images(self, images: Tensor, *, hard: bool = True) -> tuple[Tensor, Tensor]:
        # hard=False gives the mixture of embeddings itself: smooth, for checking the gradient.
        latents_BNE = self.image_features(images)
        table_VH = self.image_rows(self.base.get_input_embeddings().weight)
        if not hard:
            return latents_BNE, soft_codes(latents_BNE, self.codebook(), table_VH)
        embeds_BNH = table_VH[nearest_codes(latents_BNE, self.codebook())]
        return latents_BNE, read_codes(embeds_BNH, latents_BNE, self.codebook(), table_VH)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        return nearest_codes(self.image_features(images), self.codebook())

    # ---- drawing -------------------------------------------------------------------------------
    def codebook(self) -> Tensor:
        return self.base.model.vqmodel.quantize.embedding.weight

    def kinship(self) -> Tensor:  # what the language model reads of each code
        return self.image_rows(self.base.get_input_embeddings().weight)

    def image_logits(self, states_BNH: Tensor) -> Tensor:
        states_BNH = full_precision(states_BNH)
        head_VH = self.image_rows(self.base.lm_head.weight).to(states_BNH.dtype)
        with torch.autocast(states_BNH.device.type, enabled=False):
            return F.linear(states_BNH, head_VH)

    def code_scores(self, states_H: Tensor) -> Tensor:
        return F.linear(states_H, self.image_rows(self.base.lm_head.weight))

    def image_states(
        self, prompts: Sequence[PromptTokens], codes_BN: Tensor, read_BNH: Tensor | None = None
    ) -> Tensor:
        drawn_BT = self.picture_ids(codes_BN)
        count = drawn_BT.shape[1]
        tokens = self._room_for(prompts, count)
        tokens.ids_BL[:, -count:] = drawn_BT
        embeds_BLH = self.prompt_embeds(tokens, read_BNH)
        return self.language_states(embeds_BLH, tokens)[:, -count - 1 :]

    def picture_ids(self, codes_BN: Tensor) -> Tensor:
        """What stands behind a prompt, up to what predicts the last code."""
        return self.token_V[codes_BN[:, :-1]]

    def feed_codes(self, codes_B1: Tensor, count: int) -> Tensor:
        return self.base.get_input_embeddings()(self.token_V[codes_B1])

    def decode_vectors(self, vectors_MNE: Tensor) -> Tensor:
        return self._in_parts(self._decode_in_precision, vectors_MNE)

    def _decode_in_precision(self, vectors_MNE: Tensor) -> Tensor:
        with self._precision():
            pixels = self._decode(vectors_MNE)
        return self.pixels.unnormalise(pixels)

    def _in_parts(self, convolve: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """``convolve`` a few pictures at a time, recomputed in backward under checkpointing.

        At full size its activations take gigabytes for each picture. The parts are the same with
        and without a gradient and checkpointing: a batch of another size may round otherwise, and
        then the nearest code is another one, or ``render`` does not repeat ``draw`` bit for bit.
        """
        parts = rows.split(max(1, PIXELS_AT_ONCE // self.facts.image_size**2))
        if self.checkpointing and rows.requires_grad and torch.is_grad_enabled():
            done = [checkpoint(convolve, part, use_reentrant=False) for part in parts]
            return torch.cat(cast(list[Tensor], done))
        return torch.cat([convolve(part) for part in parts])


def image_tokens(codes: Mapping[int, int], wanted: int) -> Tensor:
    """Vocabulary id of each code, from what ``vocabulary_map`` names.

    Raises:
        UserError: it does not name every code.
    """
    if sorted(codes) != list(range(wanted)):
        raise UserError(
            f"vocabulary_map in config.json names {len(codes)} image tokens, the image tokenizer "
            f"has {wanted} codes; download or convert the checkpoint again"
        )
    return torch.tensor([codes[code] for code in range(wanted)])
