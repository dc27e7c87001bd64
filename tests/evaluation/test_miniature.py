"""The twelve sets of the synthetic world go through the harness; its conditions are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unigame.evaluation.base import DataSource, Item, Prediction
from unigame.evaluation.miniature import (
    ANSWER_TOKENS,
    NewTask,
    OutOfDistribution,
    world_benchmarks,
    write_world,
)
from unigame.evaluation.registry import BENCHMARKS
from unigame.reports.metrics import value_of
from unigame.synthetic.benchmarks import NEW_TASK, OOD
from unigame.synthetic.dataset import CONDITIONS
from unigame.synthetic.reader import read
from unigame.synthetic.world import CELLS, HELD_OUT


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataSource]:
    root = tmp_path_factory.mktemp("world")
    return write_world(root, answers=24, drawings=16, ood=216, seed=4)


@pytest.fixture(scope="module")
def ood(sources: dict[str, DataSource]) -> list[Item]:
    return OutOfDistribution(prompt="bare").load(sources[OOD]).items


def pixels(item: Item) -> np.ndarray:
    return np.asarray(item.pictures[0](), np.float32) / 255


def test_every_benchmark_is_there_with_data_of_its_size(sources: dict[str, DataSource]) -> None:
    from tests.tiny import tiny_backbone

    benchmarks = {each.name: each for each in world_benchmarks(tiny_backbone())}
    assert list(benchmarks) == [*BENCHMARKS, OOD, NEW_TASK] == list(sources)
    for name, benchmark in benchmarks.items():
        items = benchmark.load(sources[name]).items
        replies = sum(item.samples for item in items) * (2 if benchmark.task == "redraw" else 1)
        wanted = 216 if name == OOD else 24 if benchmark.task == "answer" else 16
        assert abs(replies - wanted) <= 8, name
        if benchmark.task == "answer":
            assert benchmark.max_new_tokens == ANSWER_TOKENS and benchmark.prompt == "bare"
            assert type(benchmark).max_new_tokens != ANSWER_TOKENS  # others keep the reference's


def test_conditions_are_those_of_the_pictures(ood: list[Item]) -> None:
    by_condition = {
        name: [item for item in ood if item.reference["condition"] == name] for name in CONDITIONS
    }
    assert min(len(items) for items in by_condition.values()) >= 30
    for item in by_condition["combos"]:
        assert any((c, s) in HELD_OUT for _, c, s in read(pixels(item)))
    spread = {name: np.mean([pixels(i).std() for i in some]) for name, some in by_condition.items()}
    assert min(spread, key=lambda name: spread[name]) == "contrast"
    rough = {
        name: np.mean([np.abs(np.diff(pixels(i), axis=0)).mean() for i in some])
        for name, some in by_condition.items()
    }
    assert max(rough, key=lambda name: rough[name]) == "noise"


def test_the_new_task_asks_where_things_are(sources: dict[str, DataSource]) -> None:
    items = NewTask(prompt="bare").load(sources[NEW_TASK]).items
    assert len({item.prompt for item in items}) > 8
    for item in items:
        *_, colour, shape = item.prompt.rstrip("?").split()
        seen = read(pixels(item))
        (cell,) = [CELLS[cell] for cell, *thing in seen if thing == [colour, shape]]
        answers = item.reference["answers"]
        assert item.prompt.startswith("where is the ") and len(seen) >= 2
        assert cell == max(set(answers), key=answers.count) and set(answers) <= set(CELLS)


def test_the_headline_is_all_questions_and_the_parts_add_up(
    ood: list[Item], tmp_path: Path
) -> None:
    """A model that answers only questions about numbers, and those always right."""
    said = {
        item.id: Prediction(
            item.id,
            text=item.reference["answers"][0] if item.reference["answer_type"] == "number" else "",
        )
        for item in ood
    }
    scored = OutOfDistribution(prompt="bare").score(ood, said, tmp_path)
    figures = {metric.name: value_of(metric) for metric in scored.metrics}
    sizes = {metric.name: len(metric.units) for metric in scored.metrics}
    assert scored.metrics[0].name == "accuracy" and 0 < figures["accuracy"] < 30
    assert figures["accuracy_no_count"] == 0
    assert sizes["accuracy_no_count"] + sizes["accuracy_number"] == sizes["accuracy"]
    assert sum(sizes[f"accuracy_{name}"] for name in CONDITIONS) == sizes["accuracy"]
