"""Captions for pictures that have none, made once by the model itself.

A picture is redrawn by a text prompt. A question in its place says little of what the picture
shows, and redrawings then lose content. So the model that is trained describes the picture first:
greedily, by its own ``caption``, with LoRA off, which makes the text that of the base model at any
step. Each description is made when its picture is first challenged and kept in a file beside the
run, so no process makes it twice and a resumed run finds the very same text. Processes read each
other's files only at their start: a picture that two of them see is described twice, alike::

    captions.jsonl (captions_<rank>.jsonl)    {"key": ..., "id": ..., "caption": ...}

A line can be mended by hand.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from unigame.backbones.base import CAPTION_QUESTION, Backbone
from unigame.methods.files import append_lines, lines_of_all
from unigame.system.say import warn

logger = logging.getLogger(__name__)


def captions_file(rank: int) -> str:
    """Name of the file that one process writes."""
    return "captions.jsonl" if rank == 0 else f"captions_{rank}.jsonl"


class MadeCaptions:
    """The model's descriptions of pictures, by what the picture shows.

    Args:
        backbone: describes the pictures.
        folder: where this process keeps what it made, and finds what was made before.
        rank: this process's number; each writes a file of its own.

    Attributes:
        made: descriptions that this process made itself.
        unusable: pictures of which the model said nothing usable; their question is the prompt.
    """

    def __init__(self, backbone: Backbone, folder: str | Path, rank: int = 0) -> None:
        self.backbone = backbone
        self.file = Path(folder) / captions_file(rank)
        self.made = self.unusable = 0
        self._rank = rank
        self._texts: dict[str, str] = {}
        self.read(folder)

    @cached_property
    def _maker(self) -> str:
        """Another model, or another way to ask, makes other descriptions."""
        return f"{self.backbone.weights_digest()} {CAPTION_QUESTION}"

    def read(self, folder: str | Path) -> None:
        """Take over what any process of a run in ``folder`` made; damaged lines are made again."""
        for line in lines_of_all(self.file, folder, "captions*.jsonl"):
            try:
                entry = json.loads(line)
                self._texts.setdefault(str(entry["key"]), str(entry["caption"]))
            except (ValueError, TypeError, KeyError, RecursionError):
                continue

    def __call__(self, images: Tensor, ids: Sequence[str]) -> list[str]:
        """One description a picture (B, 3, S, S); empty where the model says nothing usable."""
        keys = [self._key(image) for image in images]
        missing = {key: row for row, key in enumerate(keys) if key not in self._texts}
        if missing:
            self._make(missing, images, ids)
        return [self._texts[key] for key in keys]

    def _make(self, missing: dict[str, int], images: Tensor, ids: Sequence[str]) -> None:
        if not self.made and self._rank == 0:
            text = "samples without a caption: the model describes their pictures once, kept in %s"
            logger.warning(text, self.file)
        with torch.no_grad(), self.backbone.lora_disabled():
            texts = self.backbone.caption(images[list(missing.values())])
        rules = self.backbone.text_rules
        entries = []
        for (key, row), text in zip(missing.items(), texts, strict=True):
            text = text.strip()
            if not text or (rules is not None and rules.problem({"caption": text})):
                text = ""
                self._count_unusable(ids[row])
            self._texts[key] = text
            entries.append({"key": key, "id": ids[row], "caption": text})
        self.made += len(entries)
        self._append(entries)

    def _count_unusable(self, id: str) -> None:
        if not self.unusable and self._rank == 0:
            warn(f"no usable description of picture {id!r}: redrawn by its question")
        self.unusable += 1

    def _append(self, entries: Sequence[dict[str, str]]) -> None:
        append_lines(self.file, entries)

    def _key(self, image: Tensor) -> str:
        pixels = (image * 255).round().to(torch.uint8).cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(self._maker.encode() + pixels).hexdigest()[:32]
