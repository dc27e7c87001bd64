"""The backbone contract: the only verbs by which the game speaks to a unified multimodal model.

Shape suffixes used here and everywhere else in the package:

    B  samples in the batch             N  image tokens of one picture
    K  candidates drawn per sample      H  width of the language model
    S  side of the square image, px     V  size of the image codebook
    D  width of frozen vision features

Tensors go in and come out, losses stay per sample, images are float in [0, 1]. A backbone trains
nothing and knows nothing of the game; ``docs/add-a-backbone.md`` walks through writing one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor, nn

from unigame.errors import UserError

if TYPE_CHECKING:
    import peft
    from PIL import Image

    from unigame.backbones.common.layout import TextRules

CAPTION_QUESTION = "describe the image"


@dataclass
class VisualStates:
    """The fused visual states of one teacher-forced pass over the generation path.

    Attributes:
        states_BNH: z_hat, float32: last hidden states at the N positions that predict the image.
        codes: what the image itself is made of: codebook indices (B, N) for autoregressive
            backbones, a latent (B, C, h, w) for diffusion ones.
    """

    states_BNH: Tensor
    codes: Tensor


@dataclass
class Drawing:
    """Candidate pictures. Row ``b * K + k`` is candidate ``k`` of sample ``b``.

    Attributes:
        images: (B*K, 3, S, S), float in [0, 1], differentiable in the states they were drawn from.
        compact: what ``render`` turns back into the same images: codes (B*K, N) or latents.
    """

    images: Tensor
    compact: Tensor


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """A question about its pictures and its true answer, as token ids.

    Attributes:
        prompt: all that stands before the answer, the places of the pictures included.
        answer: ends with the end mark.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def own(self) -> int:
        """Tokens of the answer without its end mark; an empty answer is nothing but that mark."""
        return max(1, len(self.answer) - 1)


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """What a picture is drawn of, as token ids, up to the place of the first drawn token."""

    ids: tuple[int, ...]


Questions = Sequence[str] | Sequence[AnswerTokens]
"""Questions as texts, beside their answers; or both as tokens, and then no answers beside them."""
Prompts = Sequence[str] | Sequence[PromptTokens]


class Preprocessor(Protocol):
    """Pictures and texts as a model takes them: layout and image processor, no weights.

    It pickles, so that a worker process of a data loader can tokenise.
    """

    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL images -> (B, 3, S, S) in [0, 1] on the CPU, by the checkpoint's own resize."""

    def answer(self, question: str, answer: str, num_images: int = 1) -> AnswerTokens:
        """A question about its pictures, and its true answer."""

    def prompt(self, text: str) -> PromptTokens:
        """A caption, to draw a picture of."""


class Reading(NamedTuple):
    """How a model reads records: what of it needs no weights.

    Attributes:
        preprocessor: pictures and texts as the model takes them.
        text_rules: what texts must not hold, and how long a row may be; None: not known.
        pictures: how many a question may show, in training.
    """

    preprocessor: Preprocessor
    text_rules: TextRules | None
    pictures: range


class AnswerLosses(NamedTuple):
    """The cross-entropy of every token of each true answer: M rows, A tokens of the longest answer.

    Attributes:
        loss_MA: 0 behind the end of a shorter answer.
        length_M: tokens of each answer. The last one is the end mark, if there is more than one.
    """

    loss_MA: Tensor
    length_M: Tensor

    def mean(self) -> Tensor:
        """The mean over all tokens of an answer, end mark included, (M,): what U learns."""
        return self.loss_MA.sum(-1) / self.length_M

    def own(self) -> tuple[Tensor, Tensor]:
        """The answer without its end mark: losses (M, A), 0 elsewhere, and their number, (M,)."""
        number_M = (self.length_M - 1).clamp(min=1)  # an empty answer is nothing but its end mark
        slots_A = torch.arange(self.loss_MA.shape[-1], device=self.loss_MA.device)
        return self.loss_MA.masked_fill(slots_A >= number_M[:, None], 0.0), number_M


@dataclass(frozen=True)
class BackboneFacts:
    """What the game, the reports and ``unigame doctor`` need to know of a model before it runs.

    ``num_image_tokens`` is N of what the model reads. A family that draws from another number of
    states says so in ``num_state_tokens``. ``guidance_scale`` is of free drawing, where nobody
    says another. ``image_size`` is the longer side of a picture, in px; ``rectangle`` its (height,
    width), of a family whose pictures may be no squares.
    """

    family: str
    image_size: int
    num_image_tokens: int
    hidden_size: int
    codebook_size: int | None
    lora_targets: tuple[str, ...]
    frozen_parts: tuple[str, ...]
    dtype: torch.dtype
    num_parameters: int
    num_state_tokens: int | None = None
    guidance_scale: float = 5.0
    rectangle: tuple[int, int] | None = None

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the model's pictures, in px."""
        return self.rectangle or (self.image_size, self.image_size)

    @property
    def state_tokens(self) -> int:
        """N of ``visual_states``, what C perturbs."""
        return self.num_image_tokens if self.num_state_tokens is None else self.num_state_tokens


class Backbone(nn.Module, ABC):
    """One model that both understands and draws images. See the module docstring for shapes.

    A backbone is an ``nn.Module`` so that a trainer can hand it to DDP, FSDP or accelerate:
    ``forward`` routes to the per-sample losses by name: wrappers intercept nothing else.
    """

    facts: BackboneFacts
    adapter_loaded = False
    """Whether ``load_adapter`` put a trained adapter on: a run then goes on with it."""
    preprocessor: Preprocessor
    kept_digests: dict[str, str] | None = None
    """Of the base weights, where they are sharded and no process can read them whole any more."""
    source: str = ""
    """What it was loaded from: the bundled model's name, a Hub id, or an absolute path."""
    quantization: str = "none"
    """How the language model's linear layers are kept: "none", "nf4" or "int8"."""
    max_images: ClassVar[int] = 1
    """Pictures that one question may show; more than 1 only where ``image_index`` is understood."""
    reads_codes: ClassVar[bool] = False
    """Whether what is read of a picture are the very codes that it is drawn of."""
    trains_by_index: ClassVar[bool] = False
    """Whether the answer losses understand ``image_index``, and the preprocessor ``num_images``:
    then rows of text alone, and rows of several pictures, can be trained on."""

    # ---- understanding -------------------------------------------------------------------------
    @abstractmethod
    def embed_images(self, images: Tensor) -> Tensor:
        """Z = Proj(Enc(x)), (B, N, H): what the language model reads. Differentiable in images."""

    @abstractmethod
    def image_features(self, images: Tensor) -> Tensor:
        """Frozen vision features (B, N, D), before the projector. Differentiable in images."""

    def read_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``image_features`` and ``embed_images`` of the same pictures: (B, N, D), (B, N, H).

        A backbone whose projector reads those very features overrides this to run its vision
        encoder once. Differentiable in images.
        """
        return self.image_features(images), self.embed_images(images)

    @property
    def reads_frozen(self) -> bool:
        """True where nothing before the language model learns, so z of a picture never changes."""
        return all("lora_" in name for name, p in self.named_parameters() if p.requires_grad)

    @abstractmethod
    def answer_loss(
        self,
        images: Tensor | None,
        questions: Questions,
        answers: Sequence[str] | None = None,
        *,
        embeds: Tensor | None = None,
    ) -> Tensor:
        """CE of each true answer, (B,): mean over that sample's answer tokens (and end mark) only.

        Logits are computed at answer positions only. Give either ``images`` (B, 3, S, S) or
        ``embeds`` (B, N, H), already projected tokens (token-space perturbation). ``images`` may
        have K * len(questions) rows: row ``b * K + k`` is then asked question ``b``. Texts and
        tokens of the same texts (``answer_tokens``) give the same loss, bit for bit.
        """

    def answer_token_losses(
        self,
        images: Tensor | None,
        questions: Questions,
        answers: Sequence[str] | None = None,
        *,
        embeds: Tensor | None = None,
        image_index: Sequence[Sequence[int]] | None = None,
    ) -> AnswerLosses:
        """What ``answer_loss`` averages, token by token, in one pass; ``mean`` gives its values.

        The game judges an answer by its own tokens, without the end mark. A backbone that leaves
        this out is judged by the mean: each of its answers is taken for one token.

        With ``image_index``, ``images`` (or ``embeds``) are the different pictures of the batch,
        and question ``b`` shows those that ``image_index[b]`` lists, in their order in its tokens;
        none, where it is text alone. Pictures that no question shows do no harm. Only backbones
        with ``trains_by_index`` are given it.
        """
        if image_index is not None:
            raise ValueError(f"{type(self).__name__} does not understand image_index")
        loss_M = self.answer_loss(images, questions, answers, embeds=embeds)
        return AnswerLosses(loss_M[:, None], torch.ones_like(loss_M, dtype=torch.long))

    def answer_lengths(self, questions: Questions, answers: Sequence[str] | None = None) -> Tensor:
        """Tokens that ``answer_loss`` averages over in each answer, (B,), int64, on the CPU."""
        return torch.tensor([len(row.answer) for row in self.answer_tokens(questions, answers)])

    def answer_tokens(
        self, questions: Questions, answers: Sequence[str] | None = None
    ) -> list[AnswerTokens]:
        """Questions and answers as tokens; tokens pass as they are."""
        if answers is None:
            return list(cast(Sequence[AnswerTokens], questions))
        if len(questions) != len(answers):
            raise ValueError(f"{len(questions)} questions but {len(answers)} answers")
        texts = zip(cast(Sequence[str], questions), answers, strict=True)
        return [self.preprocessor.answer(question, answer) for question, answer in texts]

    @abstractmethod
    def answer(
        self,
        images: Tensor,
        questions: Sequence[str],
        *,
        max_new_tokens: int = 16,
        image_index: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Greedy answers, one string per image; batched and cached. No gradient.

        With ``image_index``, ``images`` are the different pictures of the batch, and question ``b``
        shows those that ``image_index[b]`` lists: several at once, or one that others show too.
        Marks ``<image k>`` in a question of several pictures say where each stands. Only backbones
        with ``max_images`` above 1 are given it.
        """

    def caption(self, images: Tensor, *, max_new_tokens: int = 48) -> list[str]:
        """One description per image: the answer to ``CAPTION_QUESTION``."""
        return self.answer(images, [CAPTION_QUESTION] * len(images), max_new_tokens=max_new_tokens)

    def reply(self, texts: Sequence[str], *, max_new_tokens: int = 64) -> list[str]:
        """Greedy replies to texts without a picture, one each. No gradient.

        Raises:
            UserError: the family does not say how; by default none does.
        """
        raise UserError(
            f"backbone family {self.facts.family!r} answers questions about pictures only, so it "
            "cannot write questions from captions; use question_maker=rules"
        )

    @property
    def text_rules(self) -> TextRules | None:
        """What texts of the data must not hold, and how long a row may be; None: not known."""
        return None

    @property
    def reading(self) -> Reading:
        """How it reads records; ``load_reading`` gives the same without weights."""
        fewest, most = (0, self.max_images) if self.trains_by_index else (1, 1)
        return Reading(self.preprocessor, self.text_rules, range(fewest, most + 1))

    def prompt_tokens(self, prompts: Prompts) -> list[PromptTokens]:
        """Drawing prompts as tokens; tokens pass as they are."""
        prompt = self.preprocessor.prompt
        return [prompt(text) if isinstance(text, str) else text for text in prompts]

    def rows_and_codes(
        self, images: Tensor, prompts: Prompts, codes: Tensor | None
    ) -> tuple[list[PromptTokens], Tensor]:
        """``prompt_tokens``, and the pictures in compact form: known ``codes``, or encoded."""
        if codes is None:
            codes = self.encode_images(images)
        codes = codes.to(self.device)
        if len(prompts) != len(codes):
            raise ValueError(f"{len(prompts)} prompts but {len(codes)} images")
        codes = codes if codes.is_floating_point() else codes.long()
        return self.prompt_tokens(prompts), codes

    # ---- generation ----------------------------------------------------------------------------
    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """The image tokenizer: images -> compact form (codes or latent). No gradient."""

    @abstractmethod
    def visual_states(
        self, images: Tensor, prompts: Prompts, *, codes: Tensor | None = None
    ) -> VisualStates:
        """z_hat by ONE teacher-forced pass over [prompt, begin-of-image, codes]. No gradient.

        ``codes`` skips the tokenizer where they are already known.
        """

    @abstractmethod
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
        """G: states -> candidate images, differentiable in the states (straight-through).

        ``anchor`` biases the drawing toward the image's own ``codes`` (0: pure redrawing), and with
        an ``anchor_width`` above 0 also toward codes near them. That is named only where it is
        asked for; latents are always drawn by plain distance, so it changes nothing there. With
        ``sample`` or K > 1 the K candidates are Gumbel draws at ``temperature``; otherwise argmax.
        Candidates are drawn one after another from ``generator``: drawing K at once equals drawing
        them, with ``sample``, in several calls.
        """

    def require_drawing(self) -> None:
        """Say now if ``draw``, ``render`` and ``generate`` cannot work, before any long work.

        By default they can. A family whose checkpoints may lack an image decoder overrides this.

        Raises:
            UserError: the loaded model has no image decoder.
        """

    @abstractmethod
    def render(self, compact: Tensor) -> Tensor:
        """Images (B, 3, S, S) from the compact form that ``draw`` and ``encode_images`` give."""

    @abstractmethod
    def generation_loss(
        self, images: Tensor, captions: Prompts, *, codes: Tensor | None = None
    ) -> Tensor:
        """Caption -> image loss of each sample, (B,): CE over image codes, or noise prediction."""

    def reconstruction_loss(
        self,
        images: Tensor | None,
        templates: Prompts,
        *,
        codes: Tensor | None = None,
        embeds: Tensor | None = None,
    ) -> Tensor:
        """Loss of drawing each picture from what is read of it, (B,); as ``generation_loss``.

        The understanding tokens of a picture and a template ("describe the picture in detail")
        stand where a caption would: reconstruction alignment (RecA, arXiv 2509.07295).
        Differentiable in ``embeds``.

        Args:
            images: (B, 3, S, S), what is to be drawn; None where the other two are given.
            templates: a text each, or tokens of ``reconstruction_tokens``.
            codes: of ``images``, where they are known.
            embeds: (B, N, H), what is read; ``embed_shrunk(images)`` if left out.

        Raises:
            UserError: the family does not say how.
        """
        raise UserError(
            f"backbone family {self.facts.family!r} has no reconstruction_loss, so it cannot learn "
            "to draw what it reads; leave method reca out"
        )

    def reconstruction_tokens(self, templates: Prompts) -> list[PromptTokens]:
        """Templates as tokens, with the places of the picture that is read; tokens pass.

        Raises:
            UserError: the family does not say how.
        """
        raise UserError(
            f"backbone family {self.facts.family!r} has no reconstruction_tokens, which go with "
            "its reconstruction_loss; leave method reca out"
        )

    def reading_size(self, wanted: int | None = None) -> int:
        """Side, in px, of the detail that ``embed_shrunk`` leaves.

        By default all of it; half where what is read are the codes that are to be drawn, because
        these would only be copied.

        Raises:
            UserError: ``wanted`` is more than there is, or leaves the codes to copy.
        """
        side = self.facts.image_size
        most = side // 2 if self.reads_codes else side
        if wanted is None:
            return most
        if self.reads_codes and most < wanted <= side:
            raise UserError(
                f"a picture of {side} px is read at {wanted} px and drawn of the codes that "
                f"{self.facts.family} reads, so it would learn to copy them; read {most} px or less"
            )
        if not 1 <= wanted <= side:
            raise UserError(
                f"a picture of {side} px cannot be read at {wanted} px; give 1 to {most}"
            )
        return wanted

    def embed_shrunk(self, images: Tensor, size: int | None = None) -> Tensor:
        """``embed_images`` of pictures without detail finer than ``reading_size(size)``."""
        from unigame.backbones.common.detail import without_detail

        return self.embed_images(without_detail(images, self.reading_size(size)))

    @torch.no_grad()
    def same_codes(self, images: Tensor, codes: Tensor, size: int | None = None) -> Tensor:
        """Share of each picture's codes that its shrunk copy still has at their places, (B,).

        Where what is read are the codes, a model that copies them gets so many right.
        """
        from unigame.backbones.common.detail import without_detail

        read = self.encode_images(without_detail(images, self.reading_size(size)))
        return (read == codes.to(read)).float().flatten(1).mean(-1)

    @abstractmethod
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
        """Free-running text -> image, (B, 3, S, S). Seeded by its own generator. No gradient.

        Each row has a seed of its own (``seeds_of_rows``), so that the number of rows changes no
        picture. ``seeds`` gives each prompt its own instead: its picture is then the same in any
        batch and any order. Evaluation needs it, so that a run can be stopped and resumed.
        """

    def generate_compact(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        guidance_scale: float = 5.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """What ``generate`` draws, in the compact form that ``render`` and the losses take.

        By default the drawn pictures are encoded again, which may lose a little; a family that has
        the codes or latents at hand gives those. No gradient.
        """
        with torch.no_grad():
            return self.encode_images(
                self.generate(
                    prompts, seeds=seeds, guidance_scale=guidance_scale, temperature=temperature
                )
            )

    # ---- the model as an object ----------------------------------------------------------------
    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """``preprocessor.pictures``."""
        return self.preprocessor.pictures(images)

    @abstractmethod
    def add_lora(self, config: peft.LoraConfig | None = None) -> Self:
        """Freeze everything and add float32 LoRA weights to the language model. Returns self."""

    def quantize(self, kind: str, device: torch.device) -> Self:
        """Pack the language model's frozen linear layers and move all to ``device``. Returns self.

        Before LoRA is added. See ``common.packing``.

        Raises:
            UserError: the family has no such layers, or bitsandbytes is not there.
        """
        raise UserError(
            f"quantization={kind!r}: backbone family {self.facts.family!r} does not say which "
            "layers are its language model's; load it with quantization=none"
        )

    def unfreeze(self, parts: Sequence[str]) -> Self:
        """Train parts of the model itself, without LoRA: a warm-up before the game. Returns self.

        Raises:
            UserError: the family has no such parts; by default it has none.
        """
        raise UserError(
            f"train_parts={list(parts)}: backbone family {self.facts.family!r} has no part that "
            "trains on its own; leave train_parts out"
        )

    @property
    def frozen_expert(self) -> str:
        """Name of weights that draw and do not answer, where none of them trains; else empty.

        What drawing teaches then moves the weights that answer.
        """
        return ""

    @property
    def saved_files(self) -> tuple[str, ...]:
        """Files that ``save_pretrained`` writes while this backbone trains."""
        return "adapter_model.safetensors", "adapter_config.json"

    @abstractmethod
    @contextmanager
    def lora_disabled(self) -> Iterator[None]:
        """Within: the base model's outputs, as if no adapter were there."""

    def frozen_towers(self) -> Sequence[Any]:
        """Frozen vision transformers that gradients pass; a pass over pictures runs each once."""
        return ()

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write the LoRA adapter in PEFT's format (or the whole model where there is none)."""

    def save_merged(self, folder: str | Path) -> None:
        """Write a plain checkpoint with the adapter added to the weights; the adapter is gone then.

        Raises:
            UserError: the family does not say how.
        """
        raise UserError(
            f"backbone family {self.facts.family!r} has no save_merged, so its adapters stay "
            "beside their base; load the adapter instead"
        )

    @abstractmethod
    def load_adapter(self, folder: str | Path) -> None:
        """Load a PEFT adapter of ``save_pretrained``; an empty or foreign one is an error."""

    @abstractmethod
    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute the language model's (and drawing decoder's) activations in backward.

        The last two arguments are what transformers' Trainer passes since 5.17.

        Raises:
            UserError: only some layers, or offloading, is asked for and not supported.
        """

    # ---- shared --------------------------------------------------------------------------------
    @contextmanager
    def lora_merged(self) -> Iterator[None]:
        """Within: LoRA layers do one product, with W + BA, and learn nothing."""
        from unigame.backbones.common.lora import merged

        with merged(self):
            yield

    def weights_digest(self) -> str:
        """Which base weights these are, whatever their precision and the device: 16 digits."""
        from unigame.backbones.common.adapter_files import weights_digest

        if self.kept_digests is not None:
            return self.kept_digests["whole"]
        return weights_digest(self)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """The name by which newer transformers calls ``gradient_checkpointing_enable``."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def forward(self, loss: str, by_token: bool = False, **inputs: Any) -> Tensor | AnswerLosses:
        """Per-sample loss by name (a ``LossName`` of the rows): what DDP intercepts.

        ``by_token`` gives the answers' ``AnswerLosses`` in place of their means.
        """
        if loss == "answer" and by_token:
            return self.answer_token_losses(**inputs)
        if loss == "answer":
            return self.answer_loss(**inputs)
        if loss == "generation":
            return self.generation_loss(**inputs)
        if loss == "reconstruction":
            return self.reconstruction_loss(**inputs)
        raise ValueError(f"unknown loss {loss!r}; give 'answer', 'generation' or 'reconstruction'")

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Within: dropout is off but the module stays in its mode (so checkpointing stays on)."""
        active = [m for m in self.modules() if isinstance(m, nn.Dropout) and m.training]
        for module in active:
            module.training = False
        try:
            yield
        finally:
            for module in active:
                module.training = True

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The weights that player U may move (LoRA)."""
        return [p for p in self.parameters() if p.requires_grad]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device
