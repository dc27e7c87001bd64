"""UnifiedBench: a picture captioned and redrawn by one model, and how like itself it stays.

The protocol is that of Unified-Bench in the UAE paper (arXiv 2509.09666): the model captions each
reference picture, draws a picture from that caption alone, and both pictures are compared by the
cosine of several encoders' features. The score is the plain mean of the encoders' means, times 100.
Which encoders decides the number, so their list always stands beside it, and fewer than four are
never called UnifiedBench.

Picture list, count and licence of the original set are not established, and no Hub copy is known
to us: users supply a folder of pictures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unigame.backbones.base import CAPTION_QUESTION
from unigame.data import CorruptImage, SkipReport
from unigame.data.images import IMAGE_SUFFIXES
from unigame.data.pictures import content_key
from unigame.errors import UserError
from unigame.evaluation.base import (
    Benchmark,
    DatasetInfo,
    DataSource,
    Item,
    Loaded,
    Prediction,
    Scored,
)
from unigame.evaluation.drawn import Drawn, decoded, digest, drawn_pictures, without_pictures
from unigame.evaluation.items import loaded
from unigame.evaluation.scorers.encoders import (
    PRESETS,
    Encoder,
    NamedEncoder,
    encoder_list,
    label_of,
    open_encoder,
)
from unigame.evaluation.scorers.pretrained import Loadable
from unigame.evaluation.source import BadRow, Rows, field, picture, read_rows
from unigame.evaluation.store import JsonlStore
from unigame.evaluation.tasks.unifiedbench.rules import cosine, figures, metrics, warnings

CAPTION_PROMPT = (
    "You are an expert vision-language model.\n"
    "Your task is: Given an input image, generate a **textual description** of the image. "
    'If there is text in the image, transcribe it inside double quotes "".\n'
    "Now, carefully analyze the input image and output the full description."
)
"""The caption prompt of UAE's demo, which TorchUMM's runner uses by default."""

_PROMPTS = {"uae": CAPTION_PROMPT, "bare": CAPTION_QUESTION}
_FOLDERS = ("", "Image", "images", "image")


class UnifiedBench(Benchmark):
    """Caption, redraw, compare.

    Args:
        prompt: ``uae`` (the default) or ``bare``, the question that this package trains captions
            with.
        parser: only ``cosine``.
        encoders: ``paper`` (the default), ``uae``, or a list of short names, Hub ids, folders and
            encoder objects.
        caption_tokens: longest caption. TorchUMM gives its BAGEL 1,000; models that draw from a
            short context, as Janus, cut long prompts off, so 256 here.
        device: where the encoders run; None: the accelerator if there is one.
    """

    name = "unifiedbench"
    title = "UnifiedBench"
    group = "consistency"
    task = "redraw"
    prompt_variants = tuple(_PROMPTS)
    parser_variants = ("cosine",)
    max_new_tokens = 256

    def __init__(
        self,
        *,
        prompt: str | None = None,
        parser: str | None = None,
        encoders: str | Sequence[str | Encoder] | None = None,
        caption_tokens: int = 256,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(prompt=prompt, parser=parser)
        if caption_tokens < 1:
            raise UserError(f"caption_tokens is {caption_tokens}; give at least 1, usually 256")
        # Fixed by the reference in every other benchmark, and so a class variable there.
        self.max_new_tokens = caption_tokens  # type: ignore[misc]
        self.encoders = encoder_list("paper" if encoders is None else encoders)
        self._device = device
        self._opened: list[NamedEncoder] | None = None

    @property
    def labels(self) -> list[str]:
        """Short labels of the encoders, in order."""
        return [label_of(each) for each in self.encoders]

    def variant(self) -> dict[str, Any]:
        """Prompt, longest caption, and the encoders with the preset that they are, if any."""
        presets = [name for name, labels in PRESETS.items() if list(labels) == self.labels]
        return {
            **super().variant(),
            "caption_tokens": self.max_new_tokens,
            "encoders": self.labels,
            "preset": presets[0] if presets else "custom",
        }

    def prepare(self) -> None:
        """Find every encoder and read its weights once, before the drawing."""
        for _, encoder in self._open():
            if isinstance(encoder, Loadable):
                encoder.check()

    def _open(self) -> list[NamedEncoder]:
        if self._opened is None:
            self._opened = [open_encoder(each, self._device) for each in self.encoders]
        return self._opened

    # ---- items ---------------------------------------------------------------------------------

    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Pictures of a folder (or of its folder ``Image`` or ``images``), in natural order.

        ``2.png`` goes before ``10.png``; the stem is the id. A data set with a column ``image``
        can be given instead, as a Hub id or as local parquet.
        """
        skips = SkipReport()
        if source.root is not None and (files := _picture_files(source.root.expanduser())):
            info = DatasetInfo(id=source.root.expanduser().resolve().name)
            items = self._from_files(files, skips)
        else:
            info, items = self._from_rows(source, skips)
        return loaded(items if limit is None else items[:limit], info, skips)

    def _from_files(self, files: Sequence[Path], skips: SkipReport) -> list[Item]:
        items: dict[str, Item] = {}
        for path in files:
            if path.stem in items:
                skips.add(path.name, "another file has this id")
                continue
            reference = {"file": path.name, "sha256": digest(path.read_bytes())}
            items[path.stem] = self._item(path.stem, path, None, reference)
        return list(items.values())

    def _from_rows(self, source: DataSource, skips: SkipReport) -> tuple[DatasetInfo, list[Item]]:
        rows = _rows_of_pictures(source)
        items = []
        for index, row in enumerate(rows.rows):
            try:
                cell = field(row, "image", object)
            except BadRow as error:
                skips.add(str(index), error.reason)
                continue
            items.append(self._item(str(index), cell, rows.root, {"row": index}))
        return rows.info, items

    def _item(self, id: str, cell: Any, root: Path | None, reference: dict[str, Any]) -> Item:
        prompt = _PROMPTS[self.prompt]
        return Item(id, prompt, pictures=(picture(cell, root),), reference=reference)

    # ---- scores --------------------------------------------------------------------------------

    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """Mean cosine of each encoder and their mean, times 100.

        With fewer than four encoders the mean is ``proxy_<n>_encoders``, never ``overall``. Cosines
        are kept in ``cosines.jsonl``; a second run asks the encoders only for what is missing.
        """
        pairs, missing = drawn_pictures(items, predictions)
        store = JsonlStore(folder / "cosines.jsonl")
        lost: dict[str, str] = {}
        by_encoder = {}
        for label, encoder in self._open():
            by_encoder[label] = _cosines(label, encoder, pairs, store, lost)
            if isinstance(encoder, Loadable):
                encoder.unload()
        unscored = without_pictures(items, pairs, missing)
        unscored |= {pair.item.id: lost[pair.id] for pair in pairs if pair.id in lost}
        captions = [predictions[pair.item.id].text for pair in pairs]
        return Scored(
            metrics=metrics(by_encoder),
            unscored=unscored,
            scorer={"encoders": {label: encoder.name for label, encoder in self._open()}},
            details={
                "pairs": {label: len(figures(by_id)) for label, by_id in by_encoder.items()},
                "empty_captions": sum(not caption.strip() for caption in captions),
            },
            warnings=warnings(by_encoder),
        )


def _cosines(
    label: str, encoder: Encoder, pairs: Sequence[Drawn], store: JsonlStore, lost: dict[str, str]
) -> dict[str, float | None]:
    """One encoder's cosine of every pair, by item id.

    What the store has of the same files and weights is not computed again. Pairs with a damaged
    picture are added to ``lost``, with the reason.
    """
    known, new = {}, []
    for pair in pairs:
        row = store.get(f"{label}/{pair.item.id}")
        if row is not None and row["of"] == _of(encoder, pair):
            known[pair.item.id] = row["cosine"]
        else:
            new.append(pair)
    for batch in decoded(new, _both, lost):
        both = [*(reference for _, (reference, _) in batch), *(drawn for _, (_, drawn) in batch)]
        first_ND, second_ND = np.split(np.asarray(encoder.encode(both), dtype=np.float64), 2)
        rows = []
        for (pair, _), value in zip(batch, cosine(first_ND, second_ND).tolist(), strict=True):
            known[pair.item.id] = round(value, 9) if math.isfinite(value) else None
            id, figure = f"{label}/{pair.item.id}", known[pair.item.id]
            rows.append({"id": id, "cosine": figure, "of": _of(encoder, pair)})
        store.append(*rows)
    return {pair.item.id: known[pair.item.id] for pair in pairs if pair.item.id in known}


def _of(encoder: Encoder, pair: Drawn) -> list[str]:
    """What a cosine depends on: weights, reference and drawn picture."""
    reference = pair.item.reference.get("sha256") or content_key(pair.item.pictures[0])[:16]
    return [encoder.name, str(reference), pair.digest]


def _both(pair: Drawn) -> tuple[Image.Image, Image.Image]:
    """The reference picture and the drawn one."""
    try:
        reference = pair.item.pictures[0]()
    except CorruptImage as error:
        raise CorruptImage(pair.id, f"reference: {error.reason}", error.detail) from error
    return reference, pair.open()


def _picture_files(root: Path) -> list[Path]:
    """The pictures of a folder or of its picture folder, by number: 2 before 10."""
    for name in _FOLDERS:
        folder = root / name
        if folder.is_dir():
            files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
            if files:
                return sorted(files, key=_natural)
    return []


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts runs of digits by value, and before letters."""
    parts = re.findall(r"\d+|\D+", path.stem)
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
    return [*key, (2, 0, path.suffix)]


def _rows_of_pictures(source: DataSource) -> Rows:
    if source.root is None and source.hub_id is None:
        raise UserError(
            "UnifiedBench has no data set on the Hub that we know of; give a folder of numbered "
            "pictures with --data-root (docs/evaluation-generation.md)"
        )
    try:
        return read_rows(source, hub_id=None, config=None, split="test", required=("image",))
    except UserError as error:
        if source.root is None:
            raise
        raise UserError(
            f"{source.root} holds no pictures ({', '.join(IMAGE_SUFFIXES)}), neither itself nor in "
            f"a folder Image or images, and no table of them: {error}"
        ) from error
