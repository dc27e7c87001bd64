"""Items -> predictions: pictures decoded ahead, batched answers, drawings seeded one by one.

Shape suffixes: U different pictures of a batch, B rows, S side of a picture.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from unigame.backbones.base import Backbone
from unigame.backbones.common.seeded import draw_seeded
from unigame.data.images import MISSING, CorruptImage
from unigame.data.pictures import StoredPicture
from unigame.evaluation.base import Item, Picture, Prediction
from unigame.evaluation.batching import BatchSize, in_batches, in_order
from unigame.seeds import derive_seed

A = TypeVar("A")
B = TypeVar("B")

WORKERS = 4
AHEAD = 3
"""Batches whose pictures are decoded before they are needed."""


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn.

    Attributes:
        seed: with the same seed an item's pictures are the same in every run, batch and order.
        guidance_scale: of classifier-free guidance; 1 is none.
        temperature: of sampling; 0 draws the likeliest picture.
    """

    seed: int = 0
    guidance_scale: float = 5.0
    temperature: float = 1.0


@dataclass
class Shown:
    """A batch whose pictures are decoded.

    Attributes:
        items: those whose pictures all decode.
        images_U3SS: the different pictures, as the model takes them, on the CPU.
        index: of each item, which pictures it shows.
        errors: item id -> why its pictures cannot be had.
    """

    items: list[Item]
    images_U3SS: Tensor | None
    index: list[list[int]]
    errors: dict[str, str] = field(default_factory=dict)


class Asker:
    """Asks one model; see the methods for what.

    Args:
        backbone: the model, in evaluation mode.
        size: rows per batch, halved when memory runs out.
        max_images: pictures that a question may show; further ones are dropped.
    """

    def __init__(self, backbone: Backbone, size: BatchSize, max_images: int = 1) -> None:
        self.backbone, self.size, self.max_images = backbone, size, max_images

    # ---- answers -------------------------------------------------------------------------------
    def answers(
        self, items: Sequence[Item], *, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> Iterator[list[Prediction]]:
        """Replies to all items, batch by batch; an item without its picture gets an error."""
        batches = in_batches(in_order(items), self.size)
        for shown in ahead(self._show, batches):
            replies = self._replies(shown, max_new_tokens)
            yield [
                *_failed(shown),
                *(
                    Prediction(item.id, text=cut(reply, stop))
                    for item, reply in zip(shown.items, replies, strict=True)
                ),
            ]

    def _replies(self, shown: Shown, max_new_tokens: int) -> list[str]:
        rows = list(zip((item.prompt for item in shown.items), shown.index, strict=True))

        def ask(part: Sequence[tuple[str, list[int]]]) -> list[str]:
            used = sorted({picture for _, pictures in part for picture in pictures})
            images_U3SS = shown.images_U3SS[used].to(self.backbone.device)  # type: ignore[index]
            prompts = [prompt for prompt, _ in part]
            index = [[used.index(picture) for picture in pictures] for _, pictures in part]
            if self.backbone.max_images > 1:
                return self.backbone.answer(
                    images_U3SS, prompts, max_new_tokens=max_new_tokens, image_index=index
                )
            images_B3SS = images_U3SS[[pictures[0] for pictures in index]]
            return self.backbone.answer(images_B3SS, prompts, max_new_tokens=max_new_tokens)

        return self.size.each(rows, ask)

    def _show(self, items: Sequence[Item]) -> Shown:
        """Decode and resize the pictures of a batch, each different one once."""
        slots: dict[str, int] = {}
        decoded: list[Tensor] = []
        shown = Shown([], None, [])
        for item in items:
            try:
                pictures = item.pictures[: self.max_images]
                if not pictures:
                    raise CorruptImage(item.id, MISSING, "the item shows no picture")
                places = []
                for picture in pictures:
                    key = _key(picture)
                    if key not in slots:
                        decoded.append(self.backbone.preprocess([picture()])[0])
                        slots[key] = len(decoded) - 1
                    places.append(slots[key])
            except CorruptImage as error:
                shown.errors[item.id] = error.reason
                continue
            shown.items.append(item)
            shown.index.append(places)
        shown.images_U3SS = torch.stack(decoded) if decoded else None
        return shown

    # ---- drawings ------------------------------------------------------------------------------
    def drawings(
        self, items: Sequence[Item], how: Drawing, folder: Path, *, salt: str = ""
    ) -> Iterator[list[Prediction]]:
        """Draw ``item.samples`` pictures of every prompt into ``folder``, batch by batch.

        An item is given when all its pictures are written. ``salt`` keeps equal ids of different
        benchmarks apart.
        """
        for batch in _drawing_batches(in_order(items), self.size):
            yield self._drawn([(Prediction(i.id), i, i.prompt) for i in batch], how, folder, salt)

    def redrawings(
        self,
        items: Sequence[Item],
        how: Drawing,
        folder: Path,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        salt: str = "",
    ) -> Iterator[list[Prediction]]:
        """Caption the picture of every item, then draw from that caption alone."""
        for shown in ahead(self._show, in_batches(in_order(items), self.size)):
            texts = [cut(reply, stop) for reply in self._replies(shown, max_new_tokens)]
            captioned = [
                (Prediction(item.id, text), item, text)
                for item, text in zip(shown.items, texts, strict=True)
            ]
            yield [*_failed(shown), *self._drawn(captioned, how, folder, salt)]

    def _drawn(
        self, asked: Sequence[tuple[Prediction, Item, str]], how: Drawing, folder: Path, salt: str
    ) -> list[Prediction]:
        """The predictions with the pictures of their prompts."""
        rows = [(item, text, sample) for _, item, text in asked for sample in range(item.samples)]
        paths = iter(self._draw(rows, how, folder, salt))
        return [
            replace(prediction, pictures=tuple(next(paths) for _ in range(item.samples)))
            for prediction, item, _ in asked
        ]

    def _draw(
        self, rows: Sequence[tuple[Item, str, int]], how: Drawing, folder: Path, salt: str
    ) -> list[Path]:
        """Files of the pictures of (item, prompt, sample) rows, in their order."""

        def draw(part: Sequence[tuple[Item, str, int]]) -> list[Path]:
            seeds = [derive_seed(how.seed, salt, item.id, sample) for item, _, sample in part]
            images_B3SS = draw_seeded(
                self.backbone,
                [prompt for _, prompt, _ in part],
                seeds,
                guidance_scale=how.guidance_scale,
                temperature=how.temperature,
            )
            paths = [folder / picture_name(item, sample) for item, _, sample in part]
            for path, picture in zip(paths, to_pictures(images_B3SS), strict=True):
                _save(picture, path)
            return paths

        return self.size.each(rows, draw)


def ahead(work: Callable[[A], B], inputs: Iterable[A]) -> Iterator[B]:
    """``work`` of every input, in order, done in threads a few inputs ahead of the reader."""
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="pictures")
    waiting: deque[Future[B]] = deque()
    try:
        for value in inputs:
            waiting.append(pool.submit(work, value))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def cut(reply: str, stop: Sequence[str]) -> str:
    """The reply up to the first of the stop strings."""
    places = [place for mark in stop if (place := reply.find(mark)) >= 0]
    return reply[: min(places)].strip() if places else reply


def picture_name(item: Item, sample: int) -> str:
    """``7.png``, or ``7/samples/0002.png`` where an item has several, as GenEval's tools read."""
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in item.id).strip(".") or "_"
    if safe != item.id or len(safe) > 100:  # two ids must not become one name
        digest = hashlib.sha256(item.id.encode("utf-8", "surrogatepass")).hexdigest()
        safe = f"{safe[:100]}-{digest[:8]}"
    return f"{safe}.png" if item.samples == 1 else f"{safe}/samples/{sample:04d}.png"


def to_pictures(images_B3SS: Tensor) -> list[Image.Image]:
    """Images (B, 3, S, S), float in [0, 1], as 8-bit pictures."""
    pixels = images_B3SS.detach().float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(pixels_SS3) for pixels_SS3 in pixels.cpu().numpy()]


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this process alone: another rank may be drawing the same picture.
    partial = path.with_suffix(f".{os.environ.get('RANK', '0')}-{os.getpid()}.partial")
    picture.save(partial, "PNG")
    os.replace(partial, path)


def _drawing_batches(items: Sequence[Item], size: BatchSize) -> Iterator[list[Item]]:
    """Items whose pictures fill a batch; at least one item."""
    batch: list[Item] = []
    for item in items:
        if batch and sum(i.samples for i in batch) + item.samples > size.value:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _key(picture: Picture) -> str:
    """Equal for equal pictures, where that can be told without decoding them."""
    return picture.key() if isinstance(picture, StoredPicture) else f"object {id(picture)}"


def _failed(shown: Shown) -> list[Prediction]:
    return [Prediction(id, error=reason) for id, reason in shown.errors.items()]
