"""Robustness on the items of a benchmark, as one more benchmark of the record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from unigame.backbones.base import Backbone
from unigame.data import SkipReport
from unigame.errors import UserError
from unigame.evaluation.attacks.adversary import (
    LABEL_WEIGHT,
    START,
    Adversary,
    ContentCheck,
    set_aside,
)
from unigame.evaluation.attacks.robustness import Measured, RobustnessConfig, measure
from unigame.evaluation.base import Benchmark, Item, Loaded
from unigame.evaluation.examples import Score, from_items, vqa_match
from unigame.evaluation.running import pictures_digest
from unigame.methods.selfplay.method import challenge_config
from unigame.methods.selfplay.perturber import EpsMode
from unigame.reports.metrics import to_json
from unigame.training.config import UniGameConfig
from unigame.training.recipe import load_recipe

NAME = "robustness"


def check_benchmark(benchmark: Benchmark) -> None:
    """Robustness can be measured on a benchmark that asks questions.

    Raises:
        UserError: it does not.
    """
    if benchmark.task != "answer":
        raise UserError(
            f"robustness is measured on questions about pictures, and {benchmark.name} asks to "
            "draw; choose vqav2, pope or advqa"
        )


def adversary_of(recipe: str | Path) -> Adversary:
    """The adversary with the bounds and the challenge of a training recipe.

    A model should be attacked as hard as it was trained: bounds that suit one model change nothing
    in the pictures of another. What the recipe trained is not used, the perturber is fresh.

    Args:
        recipe: a YAML file, or the name of a recipe that ships with the package.

    Raises:
        UserError: as ``load_recipe``; or the recipe perturbs tokens, where no picture is drawn.
    """
    settings = load_recipe(recipe, here=False).training
    if settings.perturb_space != "decoder":
        raise UserError(
            f"recipe {recipe} has perturb_space={settings.perturb_space!r}: an attack in token "
            "space draws no picture; name a recipe with perturb_space='decoder'"
        )
    return adversary_for(settings)


def adversary_for(settings: UniGameConfig) -> Adversary:
    """The adversary that suits a training run: of its settings it has bounds and drawing.

    What it pays for changing the content, and where it starts, are the evaluation's own, and the
    same for every run: see ``adversary.py``.
    """
    # One picture a question, and the same in every run: the argmax.
    challenge = replace(
        challenge_config(settings), num_candidates=1, sample=False, label_weight=LABEL_WEIGHT
    )
    return Adversary(
        challenge,
        eps_max=settings.eps_max,
        eps_init=START * settings.eps_max,
        eps_mode=cast(EpsMode, settings.eps_mode),
    )


def robustness_entry(
    backbone: Backbone,
    benchmark: Benchmark,
    loaded: Loaded,
    config: RobustnessConfig | None = None,
    *,
    whole: Sequence[Item] | None = None,
    check: ContentCheck | None = None,
    score: Score = vqa_match,
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """The record's entry ``robustness``, measured on a benchmark's own items and prompts.

    The adversary practises on pictures of the whole data set that are then not measured, whatever
    the limit: 64 questions about as many pictures, but at most a quarter of the pictures there are.

    Items without exactly one picture and a text answer are counted as skipped. Replies are judged
    by ``score``, VQA's match by default, and not by the benchmark's parser: on clean pictures the
    figure may differ from the benchmark's own.

    Args:
        backbone: the model; left as it is.
        benchmark: whose items are used.
        loaded: its items.
        config: what to measure; None: everything.
        whole: all items of the data set where ``loaded`` is a part of them; None: those of
            ``loaded``.
        check: says which redrawn pictures kept their content; None: the model's own features.
        score: judges a reply.
        report: called with the number of items done.

    Raises:
        UserError: as ``measure_robustness``, or a benchmark without questions.
    """
    check_benchmark(benchmark)
    config, started = config or RobustnessConfig(), time.perf_counter()
    examples, skips = from_items(loaded.items), SkipReport()
    usable = {example.id for example in examples}
    for item in loaded.items:
        if item.id not in usable:
            skips.add(item.id, "not one picture with one text answer")
    practice = None
    if config.adversary is not None:
        pool = examples if whole is None else from_items(whole)
        practice = set_aside(pool, config.adversary.practice)
    found = measure(
        backbone,
        examples,
        config,
        practice=practice,
        check=check,
        score=score,
        skips=skips,
        report=report,
    )
    scored = len(found.metrics["clean"].units)
    set_apart = len(examples) - len(practice.others(examples)) if practice else 0
    return {
        "title": f"Robustness on {benchmark.title}",
        "group": "adversarial",
        "task": "answer",
        "dataset": loaded.dataset.as_dict(),
        "variant": {"benchmark": benchmark.name, **benchmark.variant(), **config.as_dict()},
        "scorer": {"content": found.check} if found.check else {},
        "generation": {"max_new_tokens": config.max_new_tokens},
        "counts": {
            "items": len(loaded.items),
            "scored": scored,
            "unparsed": 0,
            "skipped": skips.counts(),
            "unscored": {},
        },
        "warnings": _warnings(found, config, scored),
        "details": _details(found, set_apart),
        "seconds": round(time.perf_counter() - started, 3),
        "metrics": {
            name: {**to_json(metric), "headline": number == 0}
            for number, (name, metric) in enumerate(found.metrics.items())
        },
        "pictures": pictures_digest(loaded.items),
    }


def _details(found: Measured, set_apart: int) -> dict[str, Any]:
    """What the adversary practised on, and which of its pictures did not count."""
    if not found.check:
        return {}
    return {
        "practised_on": found.practised,
        "not_measured_for_practice": set_apart,
        "content_changed": found.changed,
        "content_floor": found.floor,
    }


def _warnings(found: Measured, config: RobustnessConfig, scored: int) -> list[str]:
    """What a reader of the figures must know."""
    if config.adversary is None:
        return []
    lines = [
        f"{changed} of {scored} {name} pictures no longer show what the clean ones do (by "
        f"{found.check}); the figure is over the others"
        + ("" if changed < scored else ": there are none")
        for name, changed in found.changed.items()
        if changed
    ]
    if found.practised < config.adversary.practice:
        lines.append(
            f"the adversary practised on {found.practised} questions, not "
            f"{config.adversary.practice}: there are too few pictures, and a weaker adversary "
            "flatters the model"
        )
    return lines
