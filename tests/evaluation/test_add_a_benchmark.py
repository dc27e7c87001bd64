"""The worked example of docs/add-a-benchmark.md, exactly as it stands there."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.data.files import png
from tests.evaluation.fakes import FakeBackbone
from unigame import registry
from unigame.evaluation.base import DataSource
from unigame.evaluation.registry import BENCHMARKS, benchmark_names, build_benchmark
from unigame.evaluation.run import evaluate

PAGE = Path(__file__).parents[2] / "docs" / "add-a-benchmark.md"


class Counter(FakeBackbone):
    """Says the same to every question."""

    def answer(self, images, questions, **options):
        super().answer(images, questions, **options)
        return ["Two, or rather 3."] * len(questions)


@pytest.fixture
def counting(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    assert code.count("\n") <= 120
    (tmp_path / "my_counting.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_counting", raising=False)

    def entries(group):
        mine = EntryPoint("counting", "my_counting:Counting", group)
        return [mine] if group == "unigame.benchmarks" else []

    monkeypatch.setattr(registry, "entry_points", entries)
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.png").write_bytes(png((250, 0, 0)))
    rows = [
        {"id": 1, "image": "a.png", "question": "how many discs?", "count": 3},
        {"id": 2, "image": "a.png", "question": "how many squares?", "count": 4},
        {"id": 3, "image": "a.png", "question": "how many?", "count": -1},
    ]
    (data / "counts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(root=data)


def test_it_is_found_by_entry_point_and_runs_to_a_record(counting, tmp_path):
    assert benchmark_names("all,counting") == [*BENCHMARKS, "counting"]
    bench = build_benchmark("counting", {"parser": "last", "judge": None})
    backbone, output = Counter(), tmp_path / "run"
    record = evaluate(backbone, [bench], sources={"counting": counting}, output=output)
    entry = record["benchmarks"]["counting"]
    assert {name: metric["value"] for name, metric in entry["metrics"].items()} == {
        "accuracy": 50.0,
        "off_by_one": 100.0,
    }
    assert entry["counts"]["skipped"] == {"count is negative": 1}
    assert backbone.asked[0].endswith("Answer with a number.")
    again = Counter(weight=float(backbone.weight.detach()))
    evaluate(again, [bench], sources={"counting": counting}, output=output)
    assert again.asked == [], "its predictions are resumed"


def test_its_parser_variants_differ(counting, tmp_path):
    bench = build_benchmark("counting", {"parser": "first", "prompt": "bare"})
    record = evaluate(Counter(), [bench], sources={"counting": counting}, output=tmp_path / "run")
    assert record["benchmarks"]["counting"]["metrics"]["off_by_one"]["value"] == 50.0
