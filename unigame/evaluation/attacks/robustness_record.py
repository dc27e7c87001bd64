"""Robustness on the items of a benchmark, as one more benchmark of the record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from unigame.backbones.base import Backbone
from unigame.data import SkipReport
from unigame.errors import UserError
from unigame.evaluation.attacks.adversary import ContentCheck, Practice, set_aside
from unigame.evaluation.attacks.robustness import Measured, RobustnessConfig, measure_robustness
from unigame.evaluation.base import Benchmark, Item, Loaded
from unigame.evaluation.examples import Score, from_items, own_match
from unigame.evaluation.record import metrics_json, no_interval
from unigame.evaluation.running import pictures_digest

NAME = "robustness"
SET_ASIDE = "about a picture that the adversary practises on"


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


def robustness_entry(
    backbone: Backbone,
    benchmark: Benchmark,
    loaded: Loaded,
    config: RobustnessConfig | None = None,
    *,
    whole: Sequence[Item] | None = None,
    practice: Practice | None = None,
    check: ContentCheck | None = None,
    score: Score = own_match,
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """The record's entry ``robustness``, measured on a benchmark's own items and prompts.

    The adversary practises on pictures of the whole data set that are then not measured, whatever
    the limit: 64 questions about as many pictures, but at most a quarter of the pictures there are.

    Items are scored, or counted as skipped: those without exactly one picture and a text answer,
    those about pictures of the practice, and those whose picture cannot be read. Replies are judged
    by ``score``: by default the benchmark's own parser where it judges single replies (POPE,
    MMBench, MMMU), else VQA's match, so that on clean pictures a figure may differ from its own.

    Args:
        backbone: the model; left as it is.
        benchmark: whose items are used.
        loaded: its items.
        config: what to measure; None: everything.
        whole: all items of the data set where ``loaded`` is a part of them; None: those of
            ``loaded``.
        practice: what the adversary practises on; None: chosen from ``whole``.
        check: says which redrawn pictures kept their content; None: the model's own features.
        score: judges a reply.
        report: called with the number of items done.

    Raises:
        UserError: as ``measure_robustness``, or a benchmark without questions.
    """
    check_benchmark(benchmark)
    config, started = config or RobustnessConfig(), time.perf_counter()
    examples, skips = from_items(loaded.items, benchmark), SkipReport()
    usable = {example.id for example in examples}
    for item in loaded.items:
        if item.id not in usable:
            skips.add(item.id, "not one picture with one text answer")
    if config.adversary is None:
        practice = None
    else:
        if practice is None:
            pool = examples if whole is None else from_items(whole, benchmark)
            practice = set_aside(pool, config.adversary.practice)
        measured = {example.id for example in practice.others(examples)}
        for example in examples:
            if example.id not in measured:
                skips.add(example.id, SET_ASIDE)
    found = measure_robustness(
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
            "scored": scored,  # none is unparsed: replies are compared as they are
            "skipped": skips.counts(),
            "unscored": {},
        },
        "warnings": [
            *filter(None, [no_interval(found.metrics.values())]),
            *_warnings(found, config, scored),
        ],
        "details": _details(found, skips),
        "seconds": round(time.perf_counter() - started, 3),
        "metrics": metrics_json(found.metrics.values()),
        "pictures": pictures_digest(loaded.items),
    }


def _details(found: Measured, skips: SkipReport) -> dict[str, Any]:
    """What the adversary practised on, and which of its pictures did not count."""
    if not found.check:
        return {}
    return {
        "practised_on": found.practised,
        "practice_skipped": found.practice_skipped,
        "not_measured_for_practice": skips.counts().get(SET_ASIDE, 0),
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
            f"{config.adversary.practice}: there are too few pictures that can be read, and a "
            "weaker adversary flatters the model"
        )
    return lines
