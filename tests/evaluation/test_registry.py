"""Benchmarks by name, and the variants and options that a command line gives them."""

from __future__ import annotations

import pytest

from tests.evaluation.fakes import Quiz
from unigame.errors import UserError
from unigame.evaluation import registry
from unigame.evaluation.base import Benchmark
from unigame.evaluation.registry import (
    BENCHMARKS,
    benchmark_class,
    benchmark_names,
    build_benchmark,
    check_choices,
    check_options,
    check_variants,
    choice_for,
    variant_for,
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_there_under_its_own_name(name):
    kind = benchmark_class(name)
    assert issubclass(kind, Benchmark) and kind.name == name
    assert kind.task in ("answer", "draw", "redraw") and kind.title
    assert isinstance(build_benchmark(name), kind)


def test_names_keep_their_order_and_appear_once():
    assert benchmark_names("pope, mmmu,POPE") == ["pope", "mmmu"]
    assert benchmark_names("pope,all") == list(BENCHMARKS) and len(BENCHMARKS) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("poope", "unknown benchmark 'poope'; did you mean pope"),
        ("pope,xyz", "unknown benchmark 'xyz'; choose from vqav2, mmmu"),
        (" , ", "no benchmark is named; choose from"),
    ],
)
def test_unknown_names_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        benchmark_names(text)


def test_options_go_to_the_benchmarks_that_take_them():
    judge = object()
    options = {"judge": judge, "samples": 2, "prompt": None, "encoders": "uae"}
    assert build_benchmark("wise", options).judge is judge
    assert build_benchmark("geneval", options).samples == 2
    assert build_benchmark("pope", options).prompt == "lmms_eval"


def test_an_option_that_no_chosen_benchmark_takes_is_refused():
    check_options(["pope", "dpg"], {"samples": 8, "rubric": None})
    check_options(["wise"], {"judge": "x", "rubric": "r.txt"})
    with pytest.raises(UserError, match="--samples 8 is of geneval and dpg, and .* has wise, pope"):
        check_options(["wise", "pope"], {"judge": "x", "samples": 8})
    with pytest.raises(UserError, match="--caption-tokens 9 is of unifiedbench, and .* has dpg"):
        check_options(["dpg"], {"caption_tokens": 9})


def test_variants_for_all_and_for_one(monkeypatch):
    assert variant_for("pope", "bare", "prompt") == "bare"
    assert variant_for("geneval", "bare", "prompt") is None, "it has no such variant"
    text = "pope=lmms_eval,bare"
    assert variant_for("pope", text, "prompt") == "lmms_eval"
    assert variant_for("vqav2", text, "prompt") == "bare"
    assert variant_for("pope", None, "parser") is None
    check_variants(["pope", "geneval"], "bare", "prompt")
    check_variants(["pope"], None, "prompt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "--prompt 'nope' is not known; there are pope: lmms_eval, bare; geneval"),
        ("pope=nope", "--prompt 'nope' is not known; there are pope: lmms_eval, bare$"),
        ("mmmu=bare", "mmmu is not among the benchmarks to run"),
    ],
)
def test_unknown_variants_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        check_variants(["pope", "geneval"], text, "prompt")


def test_choices_for_all_and_for_one():
    assert choice_for("pope", "test") == "test" and choice_for("pope", None) is None
    assert choice_for("pope", "mmmu=dev,pope=random") == "random"
    assert choice_for("vqav2", "pope=random") is None
    check_choices(["pope"], "pope=random", "split")
    with pytest.raises(UserError, match="--split mmmu=dev: mmmu is not among"):
        check_choices(["pope"], "mmmu=dev", "split")
    for text in ("popular,random", "pope=popular,pope=random"):
        with pytest.raises(UserError, match="two values.*'popular' and 'random'"):
            choice_for("pope", text)


def test_an_unknown_variant_in_python_lists_those_there_are():
    with pytest.raises(UserError, match="quiz has no prompt variant 'x'; choose from plain, bare"):
        Quiz(prompt="x")
    assert registry.BENCHMARKS[0] == "vqav2"
