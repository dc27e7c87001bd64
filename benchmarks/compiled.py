"""The understanding pass of training, compiled by ``torch.compile`` and not.

Forward and backward of the answers' loss with LoRA, whose questions are of another length at every
pass, as in training. In a pass all rows are padded to its longest one.

Usage:
    python benchmarks/compiled.py --json FILE [--model janus-nano] [--batch-size 8]

For each way, ``seconds`` of a pass (median, once it has seen every length), ``ratio`` to the first
way's (median of pairs that were timed side by side; all are in ``ratios``), ``first_seconds`` (of
the passes that saw a length for the first time),
``graphs`` that were compiled and ``breaks`` (places where a graph had to end). The ways:

plain           nothing is compiled
model           ``torch_compile: true``: the whole model, as transformers' Trainer does it
layers          each layer of the language model, its shapes left to torch (``dynamic=None``)
layers dynamic  the same, with any length from the beginning (``dynamic=True``)
layers bounded  the same, one graph for each length, but lengths only of ``--multiple``
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import models
import peft
import record
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a clone can be run without installing it

from unigame.backbones.base import Backbone  # noqa: E402
from unigame.synthetic.questions import vocabulary  # noqa: E402

WAYS = ("plain", "model", "layers", "layers dynamic", "layers bounded")
LENGTHS = (5, 8, 11, 14, 17, 20, 24, 29)  # words of the longest question of a pass


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--model", default="janus-nano", help="bundled, or a shape of models.py")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2, help="times that each length is timed")
    parser.add_argument("--lengths", type=int, default=len(LENGTHS))
    parser.add_argument("--multiple", type=int, default=16, help="of words, where bounded")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, Any] = {}
    passes: dict[str, Any] = {}
    for way in options.ways:  # all are compiled first, so that they are timed side by side
        passes[way] = Passes(options, way, device)
        figures[way] = passes[way].prepare()
        print(f"{way:15} {figures[way]}", file=sys.stderr, flush=True)
    seconds: dict[str, list[float]] = {way: [] for way in options.ways}
    order = list(LENGTHS[: options.lengths]) * options.rounds
    random.Random(0).shuffle(order)
    for length in order:
        for way in options.ways:
            seconds[way].append(passes[way](length))
    for way, taken in seconds.items():
        ratios = [one / plain for one, plain in zip(taken, seconds[options.ways[0]], strict=True)]
        figures[way] |= {
            "seconds": round(statistics.median(taken), 4),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 2) for ratio in ratios],
        }
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    return record.write(figures, settings, options.json)


class Passes:
    """Passes of one way, over a model of its own."""

    def __init__(self, options: Any, way: str, device: torch.device) -> None:
        self.way, self.rows = way, options.batch_size
        self.multiple = options.multiple if way == "layers bounded" else 1
        backbone = made(options.model, device)
        self.run = compiled(backbone, way)
        self.lengths = LENGTHS[: options.lengths]
        size = backbone.facts.image_size
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(self.rows, 3, size, size, generator=generator).to(device)
        with torch.no_grad():  # as in training, where the eyes read a picture once a step
            _, self.embeds = backbone.read_images(images)

    def prepare(self) -> dict[str, float]:
        """A pass of each length, in which everything is compiled."""
        counters = torch._dynamo.utils.counters
        counters.clear()
        first = sum(self(length) for length in self.lengths)
        return {
            "first_seconds": round(first, 1),
            "graphs": int(counters["stats"]["unique_graphs"]),
            "breaks": sum(counters["graph_break"].values()),
        }

    def __call__(self, length: int) -> float:
        """Seconds of a pass forward and backward, whose longest question has so many words."""
        longest = -(-length // self.multiple) * self.multiple
        questions, answers = asked(self.rows, longest)
        begun = time.perf_counter()
        texts = {"questions": questions, "answers": answers}
        self.run(loss="answer", images=None, embeds=self.embeds, **texts).sum().backward()
        if self.embeds.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begun


def made(name: str, device: torch.device) -> Backbone:
    """The model with LoRA, in training mode."""
    backbone = models.build(name, device, torch.float32)
    torch.manual_seed(0)
    backbone.add_lora(peft.LoraConfig(r=16, lora_alpha=32))
    return backbone.train()


def compiled(backbone: Backbone, way: str) -> Any:
    """What gives the answers' losses."""
    if way == "plain":
        return backbone
    if way == "model":
        return torch.compile(backbone)
    dynamic = {"layers": None, "layers dynamic": True, "layers bounded": False}[way]
    for layer in backbone.language_model.layers:  # type: ignore[union-attr]
        layer.compile(dynamic=dynamic)
    return backbone


def asked(rows: int, longest: int) -> tuple[list[str], list[str]]:
    """Questions of up to so many known words, and answers."""
    words = [word for word in vocabulary() if word.isalpha()]
    lots = random.Random(longest)
    counts = [longest, *(lots.randint(4, longest) for _ in range(rows - 1))]
    return [" ".join(lots.choices(words, k=count)) for count in counts], ["red"] * rows


if __name__ == "__main__":
    main()
