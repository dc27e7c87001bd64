"""Every golden case of the reference scorers, and the script that runs such files."""

from __future__ import annotations

import json
import runpy
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.evaluation.golden_checks import collect
from tests.evaluation.run_golden import difference, read_cases, run_case

HERE = Path(__file__).parent
BY_KIND = defaultdict(list)
for _case in read_cases(HERE / "golden.json"):
    BY_KIND[_case["benchmark"]].append(_case)


def test_every_module_of_checks_can_be_imported():
    assert collect()[1] == {}


@pytest.mark.parametrize("kind", BY_KIND)
def test_golden(kind):
    checks = collect()[0]
    failures = [str(f) for case in BY_KIND[kind] if (f := run_case(case, checks))]
    assert not failures, "\n" + "\n".join(failures)


def test_the_script_counts_and_shows_failures(tmp_path, monkeypatch, capsys):
    right = {
        "benchmark": "VQAv2.normalise",
        "inputs": {"raw": "Two."},
        "expected": {"official_and_lmms_eval": "2"},
        "id": 1,
    }
    file = tmp_path / "cases.json"
    cases = [right, {**right, "expected": {"official_and_lmms_eval": "two"}, "id": "odd"}]
    file.write_text(json.dumps({"cases": cases}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "argv", ["run_golden.py", str(file)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(HERE / "run_golden.py"), run_name="__main__")
    assert ended.value.code == 1
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[-1] == "1 passed, 1 failed"
    assert lines[0].startswith("FAILED case odd (VQAv2.normalise)")
    assert '"raw": "Two."' in said and '"official_and_lmms_eval": "2"' in said


def _echo(inputs):
    if inputs == "raise":
        raise RuntimeError("boom")
    return inputs


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ({"benchmark": "Other", "inputs": 1, "expected": 1}, "no check for this kind"),
        ({"benchmark": "echo", "inputs": "raise", "expected": 1}, "RuntimeError: boom"),
        ({"benchmark": "echo", "inputs": 1}, "a case needs"),
        ("text", "a case needs"),
    ],
)
def test_what_cannot_be_run_fails_alone(case, why):
    failure = run_case(case, {"echo": _echo})
    assert failure is not None and why in str(failure)


@pytest.mark.parametrize(
    ("expected", "got", "met"),
    [
        (0.3, 0.3 + 1e-9, True),
        (0.3, 0.301, False),
        (1, 1.0, True),
        (True, 1, False),
        (float("nan"), float("nan"), True),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"b": 1}, False),
        ({"a": None}, {}, False),
        ([1, [2.0]], (1, (2,)), True),
        ([1], [1, 2], False),
        ("1", 1, False),
    ],
)
def test_difference(expected, got, met):
    assert (difference(expected, got) is None) == met
