"""A model that only keeps a diary, and benchmarks of a few made-up items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from tests.data.files import png
from unigame.backbones.base import BackboneFacts
from unigame.data import SkipReport
from unigame.evaluation.base import (
    Benchmark,
    DatasetInfo,
    DataSource,
    Item,
    Loaded,
    Prediction,
    Scored,
)
from unigame.evaluation.source import picture
from unigame.reports.metrics import Metric, Unit

FACTS = BackboneFacts(
    family="fake",
    image_size=4,
    num_image_tokens=4,
    hidden_size=8,
    codebook_size=None,
    lora_targets=(),
    frozen_parts=(),
    dtype=torch.float32,
    num_parameters=800,
)


class FakeBackbone(nn.Module):
    """Answers with the colour of its pictures and the prompt; draws its seed.

    Args:
        fits: rows that fit into its memory.
        stop_after: calls after which the user presses Ctrl-C.
    """

    facts = FACTS
    device = torch.device("cpu")
    max_images = 3
    quantization = "none"

    def __init__(self, *, fits: int = 10**6, stop_after: int = 10**6, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))
        self.fits, self.stop_after = fits, stop_after
        self.asked: list[str] = []
        self.drawn: list[str] = []
        self.rows: list[int] = []  # of every call, also of those that did not fit
        self.pictures: list[int] = []
        self.decoded = 0

    def require_drawing(self) -> None:
        """It draws."""

    def _begin(self, rows: int) -> None:
        if len(self.rows) >= self.stop_after:
            raise KeyboardInterrupt
        self.rows.append(rows)
        if rows > self.fits:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        self.decoded += len(images)
        pixels = [torch.tensor(image.resize((4, 4)).getpixel((0, 0))) / 255 for image in images]
        return torch.stack([values[:, None, None].expand(3, 4, 4) for values in pixels])

    def answer(
        self,
        images: torch.Tensor,
        questions: Sequence[str],
        *,
        max_new_tokens: int = 16,
        image_index: Sequence[Sequence[int]] | None = None,
    ) -> list[str]:
        self._begin(len(questions))
        assert image_index is not None and not self.training
        self.pictures.append(len(images))
        self.asked += questions
        names = ["red", "green", "blue"]
        colours = [names[int(image[:, 0, 0].argmax())] for image in images]
        return [
            f"{'+'.join(colours[i] for i in shown)} {question}"
            for question, shown in zip(questions, image_index, strict=True)
        ]

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        guidance_scale: float,
        temperature: float,
        do_sample: bool,
    ) -> torch.Tensor:
        self._begin(len(prompts))
        self.drawn += prompts
        rows = [torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(rows)


class OneByOneBackbone(FakeBackbone):
    """Of a third party: one picture a question, and one seed for all prompts of a call."""

    max_images = 1

    def answer(self, images, questions, *, max_new_tokens=16):  # type: ignore[override]
        assert len(images) == len(questions)
        index = [[row] for row in range(len(images))]
        return FakeBackbone.answer(self, images, questions, image_index=index)

    def generate(self, prompts, *, seed=0, **options):  # type: ignore[override]
        return super().generate(prompts, seeds=[seed] * len(prompts), **options)


class Quiz(Benchmark):
    """Items are given; a reply is right if it ends with the prompt."""

    name = "quiz"
    title = "Quiz"
    group = "understanding"
    task = "answer"
    prompt_variants = ("plain", "bare")
    parser_variants = ("plain", "strict")
    stop = ("\n\n",)

    def __init__(self, items: Sequence[Item] = (), **variants: Any) -> None:
        super().__init__(**variants)
        self.items = list(items)
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        skips = SkipReport()
        skips.add("row 9", "missing column question")
        return Loaded(self.items[:limit], DatasetInfo("quiz-data", split="test"), skips)

    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        units = [
            Unit(item.id, (float(self.right(item, predictions[item.id])),), item.cluster)
            for item in items
            if item.id in predictions and not predictions[item.id].error
        ]
        return Scored([Metric("accuracy", "accuracy", tuple(units))])

    def right(self, item: Item, prediction: Prediction) -> bool:
        return prediction.text.endswith(item.prompt)


class Easel(Quiz):
    """Pictures to draw."""

    name = "easel"
    title = "Easel"
    task = "draw"

    def right(self, item: Item, prediction: Prediction) -> bool:
        return all(path.is_file() for path in prediction.pictures)


class Copy(Easel):
    """Pictures to describe and to draw again."""

    name = "copy"
    title = "Copy"
    task = "redraw"


def questions(count: int, *, per_picture: int = 2, bad: Sequence[int] = ()) -> list[Item]:
    """Questions of different lengths about pictures that ``per_picture`` of them share."""
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    items = []
    for number in range(count):
        shown = number // per_picture
        data = b"damaged" if number in bad else png((*colours[shown % 3][:2], shown % 200))
        if shown % 3 == 2:
            data = b"damaged" if number in bad else png((0, shown % 50, 250))
        items.append(
            Item(
                id=f"q{number}",
                prompt=f"question {number} {'x' * ((number * 7) % 11)}",
                pictures=(picture(data),),
                cluster=f"picture {shown}",
            )
        )
    return items


def prompts(count: int, samples: int = 1) -> list[Item]:
    """Prompts to draw."""
    return [
        Item(id=f"{number:05d}", prompt=f"a {'very ' * (number % 4)}red disc", samples=samples)
        for number in range(count)
    ]
