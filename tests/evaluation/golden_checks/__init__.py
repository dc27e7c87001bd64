"""The package's answers to golden cases: one module per family of benchmarks.

Every module has ``CHECKS``: kind of case (such as ``"VQAv2.score"``) -> a function of the case's
inputs that returns what the case expects, all variants at once. Checks only call the package.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Mapping[str, Any]], Any]


def collect() -> tuple[dict[str, Check], dict[str, Exception]]:
    """Checks by kind of case, and the modules that could not be imported, with the reason.

    One broken module must cost its own cases only, so its error is handed on, not raised.
    """
    checks: dict[str, Check] = {}
    broken: dict[str, Exception] = {}
    for module in pkgutil.iter_modules(__path__):
        try:
            found = importlib.import_module(f"{__name__}.{module.name}").CHECKS
        except Exception as error:
            broken[module.name] = error
            continue
        twice = sorted(checks.keys() & found.keys())
        assert not twice, f"{module.name} checks what another module checks: {twice}"
        checks |= found
    return checks, broken
