"""Understanding: questions about pictures, answered or scored, the same for every kind of drawing.

A family says how it sees (``read_images``), and its layout how a question becomes tokens.

Shape suffixes: see ``base.py``; further L tokens of the padded text, T answer tokens of the batch,
M = B*K rows, A answer tokens of a row, P places that one kind of embedding fills, U different
pictures of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unigame.backbones.base import (
    AnswerLosses,
    AnswerTokens,
    Prompts,
    PromptTokens,
    Questions,
    Reading,
)
from unigame.backbones.common.decoding import SharedPrefix, decode_text
from unigame.backbones.common.hub_model import HubModel
from unigame.backbones.common.layout import PaddedTokens, TextRules, TokenLayout, picture_order
from unigame.backbones.common.pixels import PixelTwin
from unigame.errors import UserError
from unigame.turns import split_turns, without_places


@dataclass(frozen=True)
class LayoutPreprocessor:
    """The ``Preprocessor`` of a family that lays out its own tokens."""

    layout: TokenLayout
    pictures: Callable[[Sequence[Image.Image]], Tensor]

    def answer(self, question: str, answer: str, num_images: int = 1) -> AnswerTokens:
        """Question and answer, as inference lays them out."""
        prompt = self.layout.question_ids(question, num_images)
        reply = self.layout.answer_ids(question, answer, num_images)
        return AnswerTokens(tuple(prompt), tuple(reply))

    def prompt(self, text: str) -> PromptTokens:
        """What a picture is drawn of; of a question with earlier turns, the question."""
        asked = without_places(split_turns(text).question)
        return PromptTokens(tuple(self.layout.prompt_ids(asked)))

    def reconstruction(self, template: str) -> PromptTokens:
        """What a picture is drawn of that is read itself."""
        return PromptTokens(tuple(self.layout.reconstruction_ids(template)))


def reading_of(layout: TokenLayout, pixels: PixelTwin, config: Any, max_images: int) -> Reading:
    """What ``ReadingBackbone.reading`` gives, of a model whose weights are not loaded.

    Args:
        layout: the family's.
        pixels: the family's.
        config: of the transformers model.
        max_images: of the backbone.
    """
    preprocessor = LayoutPreprocessor(layout, pixels.pictures)
    return Reading(preprocessor, _text_rules(layout, config), range(max_images + 1))


def _text_rules(layout: TokenLayout, config: Any) -> TextRules:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return TextRules(layout, positions)


class ReadingBackbone(HubModel):
    """A ``HubModel`` with the understanding verbs; rows may show no picture, one, or several.

    Args:
        model: see ``HubModel``.
        processor: see ``HubModel``.
        layout: what turns text into token rows.
        pixels: see ``HubModel``.
    """

    trains_by_index = True

    def __init__(self, model: Any, processor: Any, layout: TokenLayout, pixels: PixelTwin) -> None:
        super().__init__(model, processor, pixels)
        self.layout = layout
        self.preprocessor: LayoutPreprocessor = LayoutPreprocessor(layout, pixels.pictures)

    def rehearse(self) -> None:
        """Lay out a question, an answer and a drawing prompt, and prepare a picture.

        What tokenizer, chat template and image processor do for the first sample is tried when the
        model is loaded, so that a fault in their files is known then.

        Raises:
            UserError: the template loses the picture, or tokens are unknown to the model.
        """
        rows = [[self.layout.pad_id, self.layout.eos_id]]
        rows += [self.layout.answer_ids("a", "b"), self.layout.prompt_ids("a")]
        try:
            rows.append(self.layout.question_ids("a"))
        except UserError as error:
            raise UserError(
                "the chat template does not give a question the places of its picture; download "
                "the checkpoint's tokenizer and processor files again"
            ) from error
        known = self.base.get_input_embeddings().num_embeddings
        strange = [token for row in rows for token in row if not token < known]
        if strange:
            raise UserError(
                f"the tokenizer makes the token {strange[0]}, and the model knows {known} tokens: "
                "tokenizer.json and config.json are not of the same checkpoint; download both again"
            )
        self.preprocess([Image.new("RGB", (8, 8))])

    # ---- the verbs -----------------------------------------------------------------------------
    def image_features(self, images: Tensor) -> Tensor:
        return self.read_images(images)[0]

    def embed_images(self, images: Tensor) -> Tensor:
        return self.read_images(images)[1]

    def answer_loss(
        self,
        images: Tensor | None,
        questions: Questions,
        answers: Sequence[str] | None = None,
        *,
        embeds: Tensor | None = None,
    ) -> Tensor:
        return self.answer_token_losses(images, questions, answers, embeds=embeds).mean()

    def answer_token_losses(
        self,
        images: Tensor | None,
        questions: Questions,
        answers: Sequence[str] | None = None,
        *,
        embeds: Tensor | None = None,
        image_index: Sequence[Sequence[int]] | None = None,
    ) -> AnswerLosses:
        if (images is None) == (embeds is None):
            raise ValueError("give either images or embeds to answer_loss, and not both")
        embeds_MNH = self.embed_images(images) if images is not None else cast(Tensor, embeds)
        asked_B = self.answer_tokens(questions, answers)
        if image_index is None:
            copies = _copies(len(embeds_MNH), len(asked_B))
        else:
            copies = 1
            self._check_index(asked_B, image_index)
            embeds_MNH = embeds_MNH[[image for shown in image_index for image in shown]]
        asked_M = [asked for asked in asked_B for _ in range(copies)]
        rows = [asked.prompt + asked.answer for asked in asked_M]
        tokens = self.layout.pad(rows, "right", self.device)
        with self._precision():
            states_MLH = self.language_states(self.embed_rows(tokens, embeds_MNH), tokens)
            predicting = [
                (row, len(asked.prompt) + i - 1)
                for row, asked in enumerate(asked_M)
                for i in range(len(asked.answer))
            ]
            index_2T = torch.tensor(predicting, device=self.device).T
            logits_TV = self.text_logits(states_MLH[index_2T[0], index_2T[1]])
        target_T = torch.tensor([t for a in asked_M for t in a.answer], device=self.device)
        loss_T = F.cross_entropy(full_precision(logits_TV), target_T, reduction="none")
        lengths_M = torch.tensor([len(asked.answer) for asked in asked_M], device=self.device)
        slots_A = torch.arange(int(lengths_M.max()), device=self.device)
        filled_MA = slots_A < lengths_M[:, None]
        loss_MA = torch.zeros(filled_MA.shape, dtype=loss_T.dtype, device=self.device)
        return AnswerLosses(loss_MA.masked_scatter(filled_MA, loss_T), lengths_M)

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
        # A picture that several questions share is encoded once, and so is their common start.
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

    def reconstruction_tokens(self, templates: Prompts) -> list[PromptTokens]:
        lay_out = self.preprocessor.reconstruction
        return [lay_out(text) if isinstance(text, str) else text for text in templates]

    def reconstruction_rows(
        self,
        images: Tensor | None,
        templates: Prompts,
        codes: Tensor | None,
        embeds: Tensor | None,
    ) -> tuple[list[PromptTokens], Tensor, Tensor]:
        """Tokens, the pictures in compact form, and what is read of them."""
        if images is None and (codes is None or embeds is None):
            raise ValueError("give images to reconstruction_loss, or both codes and embeds")
        if embeds is None:
            embeds = self.embed_shrunk(cast(Tensor, images))
        rows = self.reconstruction_tokens(templates)
        rows, codes = self.rows_and_codes(cast(Tensor, images), rows, codes)
        return rows, codes, embeds

    @torch.no_grad()
    def reply(self, texts: Sequence[str], *, max_new_tokens: int = 64) -> list[str]:
        with self._evaluating(), self._precision():
            embed = self.base.get_input_embeddings()
            tokens = self.layout.pad([self.layout.text_ids(t) for t in texts], "left", self.device)
            ids = decode_text(
                self.language_model,
                embed,
                self.text_logits,
                embeds_BLH=embed(tokens.ids_BL),
                tokens=tokens,
                max_new_tokens=max_new_tokens,
                end_ids=self._end_ids(),
            )
        decode = self.layout.tokenizer.decode
        return [str(decode(row, skip_special_tokens=True)).strip() for row in ids]

    @cached_property
    def text_rules(self) -> TextRules:
        return _text_rules(self.layout, self.base.config)

    # ---- for the families ----------------------------------------------------------------------
    def text_logits(self, states_H: Tensor) -> Tensor:
        """Scores of every token of the vocabulary as the next one of an answer."""
        return self.base.get_output_embeddings()(states_H)

    def embed_rows(self, tokens: PaddedTokens, embeds_BNH: Tensor) -> Tensor:
        """Token embeddings with the placeholders replaced by image features, row by row."""
        return self.fill_places(tokens, self.layout.image_token_id, embeds_BNH)

    def fill_places(
        self,
        tokens: PaddedTokens,
        mark: int,
        embeds_BPH: Tensor,
        text_BLH: Tensor | None = None,
    ) -> Tensor:
        """Token embeddings (B, L, H) with others wherever the id is ``mark``, row by row.

        A mark may be an id below 0, which no vocabulary has. ``text_BLH`` are token embeddings in
        which other places are filled already.
        """
        if text_BLH is None:
            text_BLH = self.base.get_input_embeddings()(tokens.ids_BL.clamp(min=0))
        dtype = torch.promote_types(text_BLH.dtype, embeds_BPH.dtype)  # keeps a float32 delta
        # By places: over all of (B, L, H) a mask would cost a GPU a number for every element.
        places = (tokens.ids_BL == mark).nonzero(as_tuple=True)
        filling = embeds_BPH.to(dtype).flatten(0, 1)[: len(places[0])]
        return text_BLH.to(dtype).index_put(places, filling)

    def language_states(self, embeds_BLH: Tensor, tokens: PaddedTokens) -> Tensor:
        """Hidden states (B, L, H) after the final norm."""
        return self.language_model(
            inputs_embeds=embeds_BLH,
            attention_mask=tokens.mask_BL,
            position_ids=tokens.positions,
            use_cache=False,
        ).last_hidden_state

    def _check_index(
        self, asked_B: Sequence[AnswerTokens], image_index: Sequence[Sequence[int]]
    ) -> None:
        """Places are filled one after another: one picture too few would shift all that follow."""
        for asked, shown in zip(asked_B, image_index, strict=True):
            places = asked.prompt.count(self.layout.image_token_id)
            if places != len(shown) * self.facts.num_image_tokens:
                raise ValueError(f"{len(shown)} pictures for {places} places of image tokens")

    def _end_ids(self) -> set[int]:
        return {self.layout.eos_id, *configured_ends(self.base)}

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


def configured_ends(model: Any) -> list[int]:
    """Ids that end a text by the model's generation settings."""
    return ends_of(model.generation_config)


def ends_of(settings: Any) -> list[int]:
    """Ids that end a text by generation settings."""
    ends = settings.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return [int(token) for token in listed if token is not None]


def _copies(rows: int, texts: int) -> int:
    """K, where row b * K + k belongs to text b."""
    if texts == 0 or rows == 0 or rows % texts:
        raise ValueError(f"{rows} image rows cannot be shared out among {texts} questions")
    return rows // texts
