"""The benchmarks by name, and what a command line says of several at once.

One of your own: a subclass of ``Benchmark`` and an entry point (``docs/add-a-benchmark.md``). A
class is imported only when it is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from unigame.errors import UserError
from unigame.evaluation.base import Benchmark
from unigame.registry import Registry

_CLASSES = {
    "vqav2": "VQAv2",
    "mmmu": "MMMU",
    "mmbench": "MMBench",
    "pope": "POPE",
    "geneval": "GenEval",
    "dpg": "DPG",
    "wise": "WISE",
    "unifiedbench": "UnifiedBench",
    "naturalbench": "NaturalBench",
    "advqa": "AdVQA",
}
BENCHMARKS = tuple(_CLASSES)
"""Those that come with the package: ``all``. The paper's nine in its order, and DPG."""

REGISTRY = Registry(
    "unigame.benchmarks",
    {name: f"unigame.evaluation.tasks.{name}.task:{kind}" for name, kind in _CLASSES.items()},
)


def benchmark_names(text: str) -> list[str]:
    """``"pope,mmmu"`` or ``"all"`` as names, each once, in the order that was given.

    Raises:
        UserError: an unknown name, or none at all.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if not names:
        known = ", ".join(REGISTRY.names())
        raise UserError(f"no benchmark is named; choose from {known}, or all")
    own = [name for name in names if name != "all"]
    for name in own:
        benchmark_class(name)
    return list(dict.fromkeys([*(BENCHMARKS if "all" in names else ()), *own]))


def benchmark_class(name: str) -> type[Benchmark]:
    """The class of one benchmark.

    Raises:
        UserError: an unknown name, or a plug-in that is no benchmark.
    """
    found = REGISTRY.get(name)
    if not (isinstance(found, type) and issubclass(found, Benchmark)):
        where = REGISTRY.references()[name]
        raise UserError(f"benchmark {name!r} ({where}) is no subclass of Benchmark")
    return found


def build_benchmark(name: str, options: Mapping[str, Any] | None = None) -> Benchmark:
    """A benchmark with those of the options that it takes; options that are None are left out.

    So one set of options serves several benchmarks: a judge goes to WISE and not to POPE.

    Raises:
        UserError: an unknown benchmark or variant, or a scorer that cannot be had.
    """
    asked = {key: value for key, value in (options or {}).items() if value is not None}
    return benchmark_class(name)(**{k: v for k, v in asked.items() if _takes(name, k)})


def check_options(names: Sequence[str], given: Mapping[str, Any]) -> None:
    """Every option that is given (not None) is one that some of the benchmarks to run take.

    Raises:
        UserError: it is not; it says which benchmarks take it.
    """
    for option, value in given.items():
        if value is None or any(_takes(name, option) for name in names):
            continue
        takers = [name for name in BENCHMARKS if _takes(name, option)]
        raise UserError(
            f"--{option.replace('_', '-')} {value} is of {' and '.join(takers)}, and --benchmarks "
            f"has {', '.join(names)}; leave it out, or add one that takes it"
        )


def _takes(name: str, option: str) -> bool:
    return option in inspect.signature(benchmark_class(name)).parameters


def choice_for(name: str, text: str | None) -> str | None:
    """What one benchmark takes of ``"testdev"`` (for all) or ``"vqav2=testdev,pope=random"``."""
    chosen = _parts(text)
    return chosen.get(name, chosen.get(""))


def variant_for(name: str, text: str | None, kind: str) -> str | None:
    """As ``choice_for``, of a ``"prompt"`` or ``"parser"`` that not every benchmark has."""
    chosen = _parts(text)
    known = getattr(benchmark_class(name), f"{kind}_variants")
    return chosen.get(name) or (chosen[""] if chosen.get("") in known else None)


def check_choices(names: Sequence[str], text: str | None, option: str) -> None:
    """Every benchmark that ``text`` names is one of those to run.

    Raises:
        UserError: it is not.
    """
    for name in _parts(text):
        if name and name not in names:
            raise UserError(f"--{option} {text}: {name} is not among the benchmarks to run")


def check_variants(names: Sequence[str], text: str | None, kind: str) -> None:
    """Every variant named on a command line exists, in the benchmark it is meant for.

    Raises:
        UserError: it does not, or it is meant for a benchmark that is not run.
    """
    check_choices(names, text, kind)
    known = {name: getattr(benchmark_class(name), f"{kind}_variants") for name in names}
    for name, variant in _parts(text).items():
        meant = {n: v for n, v in known.items() if not name or n == name}
        if not any(variant in variants for variants in meant.values()):
            there = "; ".join(f"{n}: {', '.join(v)}" for n, v in meant.items())
            raise UserError(f"--{kind} {variant!r} is not known; there are {there}")


def _parts(text: str | None) -> dict[str, str]:
    """``"a"`` -> {"": "a"}; ``"pope=a,mmmu=b"`` -> {"pope": "a", "mmmu": "b"}.

    Raises:
        UserError: two values for one benchmark, or for all.
    """
    found: dict[str, str] = {}
    for part in (part.strip() for part in (text or "").split(",") if part.strip()):
        name, _, value = (each.strip() for each in part.rpartition("="))
        name = name.lower()
        if found.setdefault(name, value) != value:
            raise UserError(
                f"{text!r} gives two values{f' for {name}' if name else ''}, {found[name]!r} and "
                f"{value!r}; give one, or one for each benchmark as in pope=a,mmmu=b"
            )
    return found
