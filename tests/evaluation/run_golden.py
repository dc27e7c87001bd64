"""Run golden cases of the reference scorers against this package.

    python tests/evaluation/run_golden.py FILE [FILE ...]

A file holds ``{"cases": [{"benchmark", "inputs", "expected", "id"}, ...]}``. Every key of
``expected`` must be met, numbers to 1e-6. Failures are printed; the last line is
``N passed, M failed`` and the exit code is 1 if anything failed.
"""

# ruff: noqa: T201  a script: its output is what it prints

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.evaluation.golden_checks import Check, collect  # noqa: E402

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Failure:
    """A case that was not met: what came out instead, and why that is wrong."""

    case: Any
    got: Any
    why: str

    def __str__(self) -> str:
        case = self.case if isinstance(self.case, Mapping) else {"inputs": self.case}
        note = f"\n  note:     {case['note']}" if case.get("note") else ""
        return (
            f"FAILED case {case.get('id', '?')} ({case.get('benchmark', 'no benchmark')}): "
            f"{self.why}\n"
            f"  inputs:   {_shown(case.get('inputs'))}\n"
            f"  expected: {_shown(case.get('expected'))}\n"
            f"  got:      {_shown(self.got)}{note}"
        )


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)


def difference(expected: Any, got: Any, place: str = "") -> str | None:
    """Where ``got`` misses ``expected``; None if it is met.

    Mappings may have further keys; sequences must have the same length; a truth value is met by a
    truth value only.
    """
    where = place or "the result"
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping):
            return f"{where}: a {type(got).__name__} instead of a mapping"
        for key, value in expected.items():
            if key not in got:
                return f"{place}.{key}: missing"
            if why := difference(value, got[key], f"{place}.{key}"):
                return why
        return None
    other = f"{where}: expected {_shown(expected)}, got {_shown(got)}"
    if isinstance(expected, list):
        if not isinstance(got, list | tuple) or len(got) != len(expected):
            return other
        for i, (one, two) in enumerate(zip(expected, got, strict=True)):
            if why := difference(one, two, f"{place}[{i}]"):
                return why
        return None
    return None if _same(expected, got) else other


def _same(expected: Any, got: Any) -> bool:
    if isinstance(expected, bool) or isinstance(got, bool):
        return expected is got
    if isinstance(expected, int | float) and isinstance(got, int | float):
        if math.isnan(expected) or math.isnan(got):
            return math.isnan(expected) and math.isnan(got)
        return math.isclose(expected, got, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(expected == got)


def run_case(case: Any, checks: Mapping[str, Check]) -> Failure | None:
    """Run one case; whatever it raises is a failure of that case only."""
    try:
        kind, inputs, expected = case["benchmark"], case["inputs"], case["expected"]
    except (KeyError, TypeError):
        return Failure(case, None, "a case needs benchmark, inputs and expected")
    if kind not in checks:
        return Failure(case, None, "no check for this kind")
    try:
        got = checks[kind](inputs)
    except Exception as error:
        return Failure(case, None, f"{type(error).__name__}: {error}")
    why = difference(expected, got)
    return Failure(case, got, why) if why else None


def read_cases(path: str | Path) -> list[Any]:
    """The cases of a file.

    Raises:
        ValueError: it holds none.
        OSError: it cannot be read.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    cases = content.get("cases") if isinstance(content, dict) else content
    if not isinstance(cases, list):
        raise ValueError('no list "cases"')
    return cases


def main(paths: list[str]) -> int:
    """Run the cases of all files and print what failed; returns the exit code."""
    if not paths:
        print("usage: run_golden.py FILE [FILE ...]", file=sys.stderr)
        return 2
    checks, broken = collect()
    for module, error in broken.items():
        print(f"golden_checks/{module}.py cannot be imported: {type(error).__name__}: {error}")
    passed = failed = 0
    for path in paths:
        try:
            cases = read_cases(path)
        except (OSError, ValueError) as error:
            print(f"FAILED file {path}: {error}")
            failed += 1
            continue
        for case in cases:
            failure = run_case(case, checks)
            if failure is None:
                passed += 1
            else:
                failed += 1
                print(failure)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    # Cases hold any character; a terminal or pipe of another encoding must not end the run.
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
