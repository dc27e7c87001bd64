"""Several processes share an evaluation: the record of one, whoever dies and whoever is slow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.fakes import Copy, Easel, FakeBackbone, Quiz, prompts, questions
from unigame.errors import UserError
from unigame.evaluation.base import Item
from unigame.evaluation.ranks import Ranks, RankStore, launched_ranks, parts
from unigame.evaluation.run import evaluate

TIMES = ("created", "seconds")


def run(output: Path, *benchmarks: Quiz, rank: int = 0, count: int = 1, **options: Any) -> Any:
    backbone = options.pop("backbone", None) or FakeBackbone()
    ranks = Ranks(rank, count)
    evaluate(backbone, benchmarks, sources={}, output=output, batch_size=2, ranks=ranks, **options)
    return backbone


def benchmarks() -> list[Quiz]:
    return [
        Quiz(questions(31, bad=[4])),
        Easel(prompts(9, samples=2)),
        Copy([Item(i.id, f"describe {i.id}", i.pictures) for i in questions(7)]),
    ]


def without_times(output: Path) -> str:
    """The record's text, byte for byte, but for when it was made and how long that took."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(each) for key, each in value.items() if key not in TIMES}
        return [strip(each) for each in value] if isinstance(value, list) else value

    return json.dumps(strip(json.loads((output / "results.json").read_text())))


def pictures(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*.png")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    run(output, *benchmarks())
    return output


def assert_same(output: Path, alone: Path) -> None:
    assert without_times(output) == without_times(alone)
    assert pictures(output) == pictures(alone)
    assert not list(output.rglob("predictions.rank*")) and not list(output.rglob("*.partial"))


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0)])
def test_the_record_is_that_of_one_process(tmp_path, alone, order: Sequence[int]) -> None:
    """Also if a rank never begins, or begins when everything is done."""
    for rank in order:
        run(tmp_path, *benchmarks(), rank=rank, count=3)
    assert_same(tmp_path, alone)


def play(items: list[Item], count: int, dead: int | None = None) -> list[list[str]]:
    """What each rank asks if all go on at one pace; the dead one asks one part and writes none."""
    written: set[str] = set()
    shares = [
        parts(
            items,
            Ranks(rank, count),
            batch=2,
            settled=lambda item: item.id in written,
            refresh=lambda: None,
        )
        for rank in range(count)
    ]
    asked: list[list[str]] = [[] for _ in shares]
    living = dict(enumerate(shares))
    while living:
        now = {rank: next(share, None) for rank, share in living.items()}
        for rank, part in now.items():
            if part is None or rank == dead:
                del living[rank]
            if part is not None and rank != dead:
                asked[rank] += [item.id for item in part]
        written.update(id for of_rank in asked for id in of_rank)
    return asked


def test_ranks_at_one_pace_ask_every_item_once() -> None:
    items = questions(64)
    asked = play(items, count=4)
    assert sorted(id for of_rank in asked for id in of_rank) == sorted(i.id for i in items)
    assert {len(of_rank) for of_rank in asked} == {16}


def test_the_share_of_a_dead_rank_is_asked_by_several_others() -> None:
    items = questions(64)
    asked = play(items, count=4, dead=1)
    assert {id for of_rank in asked for id in of_rank} == {item.id for item in items}
    assert not asked[1] and all(len(asked[rank]) > 16 for rank in (0, 2, 3))
    again = sum(map(len, asked)) - len(items)
    assert again < 4  # helpers that come at the same time may ask the same last batch


@pytest.mark.parametrize(("before", "after"), [(3, 1), (2, 4)])
def test_a_dead_rank_loses_its_batch_and_another_number_goes_on(
    tmp_path, alone, before: int, after: int
) -> None:
    dead = FakeBackbone(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *benchmarks(), rank=1, count=before, backbone=dead)
    with (tmp_path / "quiz" / "predictions.rank1.jsonl").open("a") as file:
        file.write('{"id": "q9", "te')  # killed while it wrote
    assert len(dead.asked) >= 5  # the damaged picture is asked about by none
    rest = [run(tmp_path, *benchmarks(), rank=r, count=after) for r in reversed(range(after))]
    asked = [prompt for backbone in rest for prompt in backbone.asked]
    assert not set(dead.asked) & set(asked) and len(asked) == len(set(asked))
    assert_same(tmp_path, alone)


def test_rank_zero_alone_scores_and_needs_scorers(tmp_path) -> None:
    quiz = Quiz(questions(6))
    run(tmp_path, quiz, rank=1, count=2)
    assert quiz.prepared == 0 and not (tmp_path / "results.json").exists()
    run(tmp_path, quiz, rank=0, count=2)
    assert quiz.prepared == 1 and (tmp_path / "results.json").exists()


def test_a_picture_that_changed_is_asked_again_by_one_rank(tmp_path) -> None:
    items = questions(8)
    run(tmp_path, Quiz(items), rank=0, count=2)
    other = questions(12)[10]
    changed = [*items[:-1], Item(items[-1].id, items[-1].prompt, other.pictures)]
    again = [run(tmp_path, Quiz(changed), rank=rank, count=2) for rank in (1, 0)]
    assert [backbone.asked for backbone in again] == [[items[-1].prompt], []]
    row = RankStore(tmp_path / "quiz", Ranks())[items[-1].id]
    assert row["text"].startswith("blue")


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"WORLD_SIZE": "many", "RANK": "0"}, "many"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2"),
    ],
)
def test_a_launcher_that_says_too_little_is_refused(environment: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        launched_ranks(environment)
    assert launched_ranks({}) == Ranks()
    numbers = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
    assert launched_ranks(numbers) == Ranks(3, 4, 1)


def test_a_damaged_file_of_another_rank_is_named(tmp_path) -> None:
    run(tmp_path, Quiz(questions(4)), rank=1, count=2)
    with (tmp_path / "quiz" / "predictions.rank1.jsonl").open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(UserError, match=r"predictions\.rank1\.jsonl"):
        run(tmp_path, Quiz(questions(4)))
