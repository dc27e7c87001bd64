"""The ten benchmarks on the synthetic world, and two sets of its own, ready to be run.

The data are in the real schemas and the benchmarks are the real code; what is chosen here is only
what a model of some hundred words needs (no instructions, no letters of options), and what stands
in for the models that score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unigame.backbones.base import Backbone
from unigame.evaluation.ask import Drawing
from unigame.evaluation.base import Benchmark, DataSource, Item, Prediction, Scored
from unigame.evaluation.items import Row
from unigame.evaluation.registry import benchmark_class, build_benchmark
from unigame.evaluation.scorers.stand_ins import (
    ReaderColours,
    SyntheticDetector,
    SyntheticJudge,
    stand_in_encoders,
)
from unigame.evaluation.tasks.vqav2.task import VQAv2
from unigame.reports.metrics import Metric
from unigame.synthetic.benchmarks import NAMES, NEW_TASK, OOD, write_benchmarks
from unigame.synthetic.dataset import CONDITIONS

DRAWING = Drawing(guidance_scale=1.0, temperature=0.7)
"""How ``janus-nano`` draws best; ``seed`` is the caller's to replace."""
ANSWER_TOKENS, CAPTION_TOKENS = 8, 24
"""Answers take one token and captions of four objects 15; longer ones are rambling."""


def usual_drawing(latents: bool) -> Drawing:
    """How a small model of the world draws best.

    Args:
        latents: whether it draws in latents: a temperature scales the noise that these start from,
            and the model knows no noise but the whole.
    """
    return replace(DRAWING, temperature=1.0) if latents else DRAWING


class OutOfDistribution(VQAv2):
    """The world's six conditions that training never shows, asked and scored as VQAv2.

    Headline: all questions; then those that are not about numbers, and each condition.
    """

    name = OOD
    title = "out of distribution"
    group = "ood"
    hub_id = None

    def _item(self, row: Row, root: Path | None) -> Item:
        item = super()._item(row, root)
        # Scenes go round the conditions in order, and their ids count from 1.
        condition = CONDITIONS[(int(row["image_id"]) - 1) % len(CONDITIONS)]
        return replace(item, reference={**item.reference, "condition": condition})

    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """As VQAv2, and by condition."""
        scored = super().score(items, predictions, folder)
        overall, known = scored.metrics[0], {item.id: item.reference for item in items}
        groups = {"no_count": [u for u in overall.units if not _counts(known[u.id])]}
        for unit in overall.units:
            groups.setdefault(str(known[unit.id]["condition"]), []).append(unit)
        scored.metrics += [
            Metric(f"accuracy_{name}", f"{self.title}, {name.replace('_', ' ')}", tuple(units))
            for name, units in groups.items()
            if units
        ]
        return scored


class NewTask(VQAv2):
    """Where is an object? No training of the bundled model asks; asked and scored as VQAv2."""

    name = NEW_TASK
    title = "new task"
    group = "ood"
    hub_id = None


def _counts(reference: Mapping[str, Any]) -> bool:
    return reference.get("answer_type") == "number"


def write_world(
    root: Path, *, answers: int, drawings: int, ood: int, seed: int = 0
) -> dict[str, DataSource]:
    """Write all data sets and say where they are.

    Args:
        root: folder to write or to reuse; see ``write_benchmarks``.
        answers: replies that each benchmark of text answers asks for, and the new task.
        drawings: replies, mostly pictures, that each benchmark of drawing asks for.
        ood: questions of the out-of-distribution split.
        seed: of the data.

    Raises:
        UserError: a size out of range, or a folder in the way.
    """
    drawn = [name for name in NAMES if benchmark_class(name).task != "answer"]
    sizes = {name: drawings if name in drawn else answers for name in NAMES}
    sizes |= {OOD: ood, NEW_TASK: answers}
    for size in dict.fromkeys(sizes.values()):
        write_benchmarks(
            root, size=size, seed=seed, names=[n for n, s in sizes.items() if s == size]
        )
    return {name: DataSource(root=root / name) for name in sizes}


def world_benchmarks(encoder: Backbone) -> list[Benchmark]:
    """All ten and those two, with the variants and stand-ins of the synthetic world.

    Args:
        encoder: the model whose frozen vision tower UnifiedBench's stand-ins use.
    """
    options = {
        "detector": SyntheticDetector(),
        "colours": ReaderColours(),
        "judge": SyntheticJudge(),
        "encoders": stand_in_encoders(encoder),
        "caption_tokens": CAPTION_TOKENS,
    }
    found = [build_benchmark(name, {**options, **world_variants(name)}) for name in NAMES]
    found += [OutOfDistribution(prompt="bare"), NewTask(prompt="bare")]
    for benchmark in found:
        if benchmark.task == "answer":
            # Fixed by the references elsewhere, and so a class variable there.
            benchmark.max_new_tokens = ANSWER_TOKENS  # type: ignore[misc]
    return found


def world_variants(name: str) -> dict[str, str | None]:
    """Prompt and parser variant for a model that knows neither instructions nor letters."""
    kind = benchmark_class(name)
    return {
        "prompt": "bare" if "bare" in kind.prompt_variants else None,
        "parser": "text" if "text" in kind.parser_variants else None,
    }
