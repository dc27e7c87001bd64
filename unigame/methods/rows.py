"""The batch: pictures with texts, and what each of them counts for in the one loss of a step.

    R  rows    N  image tokens    H  width of the language model    S  side of the image, px

A row is a picture, its texts, and the loss that it belongs to; rows of answers may also show no
picture, or several (``image_index``). The collator makes rows of records,
methods add rows of their own, and the trainer joins those of one loss, gives each its share, and
sends them through the model. A rank whose batch lacks a kind of row must still run the passes that
the others run, or they wait for it for ever: so no rows become one row with a share of zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from unigame.backbones.base import AnswerTokens, PromptTokens

LossName = Literal["answer", "generation", "reconstruction"]
DATA = "data"
"""Source of the rows that come from records; other rows have their method's name."""
STAND_IN = "yes"  # any text that is not empty will do: the row that carries it counts for nothing


@dataclass
class Rows:
    """R rows of one loss. Everything but ``images``, ``embeds`` or ``codes`` may be left out.

    Attributes:
        images: (R, 3, S, S), float in [0, 1]; None where ``embeds`` are given instead, or where
            drawing is learned from known ``codes``, and nobody looks at the picture. With
            ``image_index`` there may be any number of them, and of ``embeds`` and ``features``.
        questions: asked of the pictures.
        answers: the true ones.
        captions: what the pictures are drawn by; an empty one leaves that to the question.
        ids: of the records; an empty id belongs to no record, and is not capped.
        asked: questions with their answers as tokens, where the collator made them.
        prompted: ``prompts`` as tokens, likewise.
        embeds: (R, N, H), what U reads of the pictures, where it is known.
        features: (R, N, D), what the frozen vision encoder says of them, where it is known.
        codes: (R, N) or a latent, what they are made of, where it is known.
        loss: which of the model's losses they belong to.
        source: who brought each row: ``"data"``, or the name of a method.
        weight: of the mean over these rows, in the loss of a step.
        counts: False: they only keep the ranks in step.
        share_R: what each row's loss is multiplied by; set by the trainer.
        image_index: which of the pictures each row shows, in order: none, one or several. None: row
            b shows picture b.
    """

    images: Tensor | None = None
    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    asked: list[AnswerTokens] | None = None
    prompted: list[PromptTokens] | None = None
    embeds: Tensor | None = None
    features: Tensor | None = None
    codes: Tensor | None = None
    loss: LossName = "answer"
    source: list[str] = field(default_factory=list)
    weight: float = 1.0
    counts: bool = True
    share_R: Tensor | None = None
    image_index: list[list[int]] | None = None

    def __post_init__(self) -> None:
        size = len(self)
        for name, filler in (
            ("questions", ""),
            ("answers", ""),
            ("captions", ""),
            ("ids", ""),
            ("source", DATA),
        ):
            if not len(getattr(self, name)):
                setattr(self, name, [filler] * size)
        for name in ROWWISE:
            value = getattr(self, name)
            wanted = self.num_pictures if name in OF_PICTURES else size
            if value is not None and len(value) != wanted:
                raise ValueError(f"{len(value)} {name} for {wanted} pictures")

    def __len__(self) -> int:
        return self.num_pictures if self.image_index is None else len(self.image_index)

    @property
    def num_pictures(self) -> int:
        """How many pictures there are: one a row, unless ``image_index`` says otherwise."""
        for pictures in (self.images, self.embeds, self.codes):
            if pictures is not None:
                return len(pictures)
        raise ValueError("rows without pictures: give images, embeds or codes")

    @property
    def pictures(self) -> Tensor:
        """``images`` where there must be some."""
        if self.images is None:
            raise ValueError("these rows have no pictures to look at, only embeds")
        return self.images

    @property
    def prompts(self) -> list[str]:
        """What each picture is drawn by: its caption, else its question."""
        pairs = zip(self.captions, self.questions, strict=True)
        return [caption.strip() or question for caption, question in pairs]

    @property
    def texts(self) -> list[str]:
        """What a text-based scorer compares with: the caption, else question and true answer."""
        triples = zip(self.prompts, self.questions, self.answers, strict=True)
        return [f"{q} {a}" if prompt == q else prompt for prompt, q, a in triples]

    @property
    def question_arguments(self) -> tuple[Any, ...]:
        """Questions and answers as the losses take them: as tokens, else as texts."""
        return (self.questions, self.answers) if self.asked is None else (self.asked,)

    @property
    def prompt_argument(self) -> Any:
        """What the pictures are drawn by, as tokens, else as texts."""
        return self.prompts if self.prompted is None else self.prompted

    def pick(self, index: Sequence[int]) -> Self:
        """Some of the rows; where none are named the first one, which then counts for nothing."""
        rows = list(index) or [0]
        picked: dict[str, Any] = {}
        pictures = rows
        if self.image_index is not None:
            shown = [self.image_index[row] for row in rows]
            pictures = sorted({image for each in shown for image in each})
            place = {image: number for number, image in enumerate(pictures)}
            picked["image_index"] = [[place[image] for image in each] for each in shown]
        for name in ROWWISE:
            value = getattr(self, name)
            if name in picked:
                continue
            if isinstance(value, Tensor):
                picked[name] = value[pictures if name in OF_PICTURES else rows]
            elif value is not None:
                picked[name] = [value[row] for row in rows]
        if not index:
            picked["counts"] = False
            if self.share_R is not None:
                picked["share_R"] = torch.zeros_like(picked["share_R"])
        return replace(self, **picked)

    def split(self, parts: int) -> list[tuple[Self, float]]:
        """Consecutive parts, each with its share of the rows.

        There are always so many: ranks that hold unequal batches run equally many passes. A part
        for which no row is left is the first row again, with a share of 0.
        """
        if parts == 1:
            return [(self, 1.0)]
        pieces = [piece.tolist() for piece in torch.arange(len(self)).tensor_split(parts)]
        return [(self.pick(piece), len(piece) / len(self)) for piece in pieces]

    def first(self, count: int) -> Self:
        """The first rows."""
        return self if count >= len(self) else self.pick(range(count))

    def filled(self) -> Self:
        """Rows whose empty texts are filled, where they are stand-ins."""
        if self.counts:
            return self
        texts: dict[str, Any] = {
            name: [text or STAND_IN for text in getattr(self, name)]
            for name in ("questions", "answers", "captions")
        }
        return replace(self, **texts)

    def moved(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same rows, every tensor changed by ``change``."""
        tensors = {name: getattr(self, name) for name in ROWWISE}
        changed: dict[str, Any] = {
            name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


ROWWISE = tuple(item.name for item in fields(Rows) if item.name not in ("loss", "weight", "counts"))
OF_PICTURES = ("images", "embeds", "features", "codes")
"""One for each picture: for each row, too, unless ``image_index`` says otherwise."""


def split_groups(groups: Sequence[Rows], parts: int) -> list[tuple[list[Rows], int]]:
    """Rows of several sources, in order, as so many consecutive passes, and the rows of each.

    A pass for which no row is left reads the first row again, and it counts for nothing.
    """
    sizes = [len(rows) for rows in groups]
    if parts == 1:
        return [(list(groups), sum(sizes))]
    place = [(group, row) for group, size in enumerate(sizes) for row in range(size)]
    passes = []
    for piece in torch.arange(len(place)).tensor_split(parts):
        chosen = [place[i] for i in piece.tolist()]
        picked = []
        for number, rows in enumerate(groups):
            index = [row for group, row in chosen if group == number]
            if index:
                picked.append(rows.pick(index))
        passes.append((picked or [groups[0].pick([])], len(chosen)))
    return passes


def join(parts: Sequence[Rows], read: Callable[[Tensor], Tensor]) -> Rows:
    """Rows of one loss, one after another, as the pass of U that reads them all takes them.

    Args:
        parts: where one has ``embeds``, all are read as embeds; those to be drawn by captions are
            not read at all, and need ``codes`` or pictures.
        read: pictures (R, 3, S, S) -> what U reads of them, for rows without ``embeds``.
    """
    if len(parts) == 1:
        return parts[0]
    lists = ("questions", "answers", "captions", "ids", "source")
    joined: dict[str, Any] = {
        name: [value for part in parts for value in getattr(part, name)] for name in lists
    }
    drawn = parts[0].loss == "generation"
    if drawn and all(part.codes is not None for part in parts):
        joined["images"] = None
    elif not drawn and any(part.embeds is not None for part in parts):
        embeds = [p.embeds if p.embeds is not None else read(p.pictures) for p in parts]
        # Hard tokens are float32 beside a bfloat16 model's clean ones: the larger type keeps delta.
        dtype = functools.reduce(torch.promote_types, [part.dtype for part in embeds])
        joined["embeds"] = torch.cat([part.to(embeds[0].device, dtype) for part in embeds])
        joined["images"] = None
    else:
        first = parts[0].pictures
        joined["images"] = torch.cat([part.pictures.to(first) for part in parts])
    if any(part.image_index is not None for part in parts):
        joined["image_index"] = _joined_index(parts)
    for name in ("codes", "share_R", "asked", "prompted"):
        values = [getattr(part, name) for part in parts]
        if any(value is None for value in values):
            continue
        tensors = isinstance(values[0], Tensor)
        joined[name] = torch.cat(values) if tensors else [v for value in values for v in value]
    return Rows(**joined, loss=parts[0].loss)


def _joined_index(parts: Sequence[Rows]) -> list[list[int]]:
    index, before = [], 0
    for part in parts:
        own = part.image_index
        if own is None:
            own = [[picture] for picture in range(part.num_pictures)]
        index += [[before + picture for picture in shown] for shown in own]
        before += part.num_pictures
    return index


def shrink(compact: Tensor) -> Tensor:
    """Codes in the smallest of int16 and int32 that holds them; latents unchanged. On the CPU."""
    compact = compact.detach().cpu()
    if compact.is_floating_point():
        return compact.clone()
    if compact.dtype == torch.int16:
        return compact.clone()
    small = compact.numel() == 0 or int(compact.max()) <= torch.iinfo(torch.int16).max
    return compact.to(torch.int16 if small else torch.int32)


@dataclass
class Batch:
    """What the collator makes of records.

    Attributes:
        records: those of one picture, a row each; which losses they take part in is said by the
            next two.
        has_answer_R: bool.
        has_caption_R: bool.
        others: answers to questions of no picture, or of several, where there are any: U learns
            them, and methods and drawing pass them by.
        num_skipped: records whose picture could not be read.
        unread: of these, the id and why.
        left_out: a line ``id <tab> reason`` for each record with a fault.
        offered: by methods, to those listed after them: so many drawings with a question whose
            answer is known -> rows, or None where there are none yet.
    """

    records: Rows
    has_answer_R: Tensor
    has_caption_R: Tensor
    num_skipped: int = 0
    unread: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    offered: list[Callable[[int], Rows | None]] = field(default_factory=list)
    others: Rows | None = None

    def __len__(self) -> int:
        return len(self.records) + (len(self.others) if self.others is not None else 0)

    @functools.cached_property
    def answers(self) -> Rows:
        """The rows with an answer, or one that only keeps step."""
        return self._where(self.has_answer_R, "answer")

    @functools.cached_property
    def captioned(self) -> Rows:
        """The rows with a caption, or one that only keeps step."""
        return self._where(self.has_caption_R, "generation")

    def _where(self, mask_R: Tensor, loss: LossName) -> Rows:
        index = mask_R.nonzero().flatten().tolist()
        return replace(self.records, loss=loss).pick(index).filled()

    def to(self, device: torch.device | str, non_blocking: bool = False, **_: Any) -> Batch:
        """The batch on a device; accelerate's loaders call this."""
        return self._moved(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in pinned memory; torch's loaders call this."""
        return self._moved(torch.Tensor.pin_memory)

    def _moved(self, change: Callable[[Tensor], Tensor]) -> Batch:
        others = None if self.others is None else self.others.moved(change)
        return replace(self, records=self.records.moved(change), others=others)
