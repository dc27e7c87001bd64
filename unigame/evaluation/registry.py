"""The benchmarks by name. A class is imported only when it is asked for."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, cast

from unigame.errors import UserError
from unigame.evaluation.base import Benchmark

_HOME = {
    "vqav2": "vqav2:VQAv2",
    "mmmu": "mmmu:MMMU",
    "mmbench": "mmbench:MMBench",
    "pope": "pope:POPE",
    "geneval": "geneval:GenEval",
    "wise": "wise:WISE",
    "unifiedbench": "unifiedbench:UnifiedBench",
    "naturalbench": "naturalbench:NaturalBench",
    "advqa": "advqa:AdVQA",
}

BENCHMARKS = tuple(_HOME)
"""All benchmarks, in the order of the paper's tables."""


def benchmark_names(text: str) -> list[str]:
    """``"pope,mmmu"`` or ``"all"`` as names, each once, in the order that was given.

    Raises:
        UserError: an unknown name, or none at all.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if "all" in names:
        return list(BENCHMARKS)
    if not names:
        raise UserError(f"no benchmark is named; choose from {', '.join(BENCHMARKS)}, or all")
    for name in names:
        benchmark_class(name)
    return list(dict.fromkeys(names))


def benchmark_class(name: str) -> type[Benchmark]:
    """The class of one benchmark.

    Raises:
        UserError: an unknown name.
    """
    if name not in _HOME:
        close = difflib.get_close_matches(name, _HOME, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"unknown benchmark {name!r}; {hint}choose from {', '.join(BENCHMARKS)}, or all"
        )
    module, _, attribute = _HOME[name].partition(":")
    found = getattr(import_module(f"unigame.evaluation.tasks.{module}.task"), attribute)
    return cast(type[Benchmark], found)


def build_benchmark(name: str, options: Mapping[str, Any] | None = None) -> Benchmark:
    """A benchmark with those of the options that it takes; options that are None are left out.

    So one set of options serves several benchmarks: a judge goes to WISE and not to POPE.

    Raises:
        UserError: an unknown benchmark or variant, or a scorer that cannot be had.
    """
    kind = benchmark_class(name)
    taken = inspect.signature(kind).parameters
    given = {k: v for k, v in (options or {}).items() if v is not None and k in taken}
    return kind(**given)


def variant_for(name: str, text: str | None, kind: str) -> str | None:
    """The prompt or parser variant that one benchmark takes from a command line.

    Args:
        name: of the benchmark.
        text: ``"bare"`` (for every benchmark that has it) or ``"pope=official,mmmu=bagel"``.
        kind: ``"prompt"`` or ``"parser"``.
    """
    if text is None:
        return None
    chosen = _parts(text)
    if name in chosen:
        return chosen[name]
    known = getattr(benchmark_class(name), f"{kind}_variants")
    return chosen[""] if chosen.get("") in known else None


def choice_for(name: str, text: str | None) -> str | None:
    """What one benchmark takes of ``"testdev"`` (for all) or ``"vqav2=testdev,pope=random"``."""
    chosen = _parts(text or "")
    return chosen.get(name, chosen.get(""))


def check_choices(names: Sequence[str], text: str | None, option: str) -> None:
    """Every benchmark that ``text`` names is one of those to run.

    Raises:
        UserError: it is not.
    """
    for name in _parts(text or ""):
        if name and name not in names:
            raise UserError(f"--{option} {text}: {name} is not among the benchmarks to run")


def check_variants(names: Sequence[str], text: str | None, kind: str) -> None:
    """Every variant named on a command line exists, in the benchmark it is meant for.

    Raises:
        UserError: it does not, or it is meant for a benchmark that is not run.
    """
    if text is None:
        return
    check_choices(names, text, kind)
    known = {name: getattr(benchmark_class(name), f"{kind}_variants") for name in names}
    for name, variant in _parts(text).items():
        if not any(variant in known[n] for n in ([name] if name else known)):
            there = "; ".join(
                f"{n}: {', '.join(v)}" for n, v in known.items() if not name or n == name
            )
            raise UserError(f"--{kind} {variant!r} is not known; there are {there}")


def _parts(text: str) -> dict[str, str]:
    """``"a"`` -> {"": "a"}; ``"pope=a,mmmu=b"`` -> {"pope": "a", "mmmu": "b"}."""
    parts = (part.strip() for part in text.split(",") if part.strip())
    pairs = (part.rpartition("=") for part in parts)
    return {name.strip().lower(): variant.strip() for name, _, variant in pairs}
