"""``results.json``: what an evaluation wrote, checked and read into plain dataclasses.

The format::

    {"arms": {"sft": {"metrics": {"ood": {"value": .., "low": .., "high": .., "n": ..}},
                      "steps": 200, "seconds": 61.2}, ...},
     "seed": 0, "config": {...},
     "differences": {"unigame": {"ood": {"value": .., "low": .., "high": ..}}},
     "metric_info": {"ood": {"label": "..", "unit": "share", "higher_is_better": true}}}

``differences`` are paired, arm minus the baseline arm ``sft``. ``unit`` is ``"share"`` for figures
in [0, 1] that are shown as percentages, or any short text that is shown as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unigame.errors import UserError
from unigame.system.json_text import parse_json

BASELINE = "sft"

ARM_LABELS = {
    "base": "base",
    "sft": "SFT",
    "sft_equal_samples": "SFT, equal samples",
    "round_trip": "round trip",
    "unigame": "UniGame",
}


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, in the metric's own unit; n questions where known."""

    value: float
    low: float
    high: float
    n: int | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class MetricInfo:
    """How to show a metric and which direction is good (None: neither).

    ``digits`` fixes the decimal places.
    """

    name: str
    label: str
    unit: str = ""
    higher_is_better: bool | None = True
    digits: int | None = None

    def show(self, value: float, *, signed: bool = False) -> str:
        """The figure as text: a percentage for shares, three significant digits otherwise."""
        sign = "+" if signed else ""
        if self.unit == "share":
            return f"{100 * value:{sign}z.1f}"  # z: no minus sign before a rounded zero
        return f"{value:{sign}z.3g}" if self.digits is None else f"{value:{sign}z.{self.digits}f}"


@dataclass(frozen=True)
class Arm:
    """One trained (or untouched) model: its figures and what it cost."""

    name: str
    metrics: Mapping[str, Estimate]
    steps: int | None = None
    seconds: float | None = None

    @property
    def label(self) -> str:
        """The arm's name as people read it."""
        return ARM_LABELS.get(self.name, self.name.replace("_", " "))


@dataclass(frozen=True)
class Results:
    """Everything a report needs. Arms and metrics keep the order of the file."""

    arms: Mapping[str, Arm]
    metrics: tuple[MetricInfo, ...]
    differences: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    seed: int | None = None
    warnings: Sequence[str] = ()

    def difference(self, arm: str, metric: str) -> Estimate | None:
        """Arm minus baseline on a metric, or None where the file has no interval for it."""
        return self.differences.get(arm, {}).get(metric)


def load_results(path: str | Path) -> Results:
    """Read and check a ``results.json``.

    Raises:
        UserError: the file is missing, is not JSON, or lacks what the format asks for.
    """
    path = Path(path)
    try:
        raw = parse_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; pass the results.json of a run"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); run the evaluation again") from None
    return parse_results(raw, source=str(path))


def parse_results(raw: Any, *, source: str = "results") -> Results:
    """Check a results dictionary and turn it into ``Results``; ``source`` names it in errors.

    Raises:
        UserError: a part is missing or a figure is not a finite number.
    """
    if not isinstance(raw, Mapping) or not isinstance(raw.get("arms"), Mapping) or not raw["arms"]:
        raise UserError(f'{source} has no "arms"; pass the results.json that a run wrote')
    arms = {}
    for name, entry in raw["arms"].items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("metrics"), Mapping):
            raise UserError(f'{source}: arm {name!r} has no "metrics"; run the evaluation again')
        metrics = {
            metric: parse_estimate(figure, f"{source}: {name}.{metric}")
            for metric, figure in entry["metrics"].items()
        }
        arms[name] = Arm(name, metrics, entry.get("steps"), entry.get("seconds"))
    differences = {
        name: {
            metric: parse_estimate(figure, f"{source}: difference {name}.{metric}")
            for metric, figure in entry.items()
        }
        for name, entry in (raw.get("differences") or {}).items()
    }
    info = raw.get("metric_info") or {}
    names = list(dict.fromkeys(metric for arm in arms.values() for metric in arm.metrics))
    return Results(
        arms=arms,
        metrics=tuple(_metric_info(name, info.get(name) or {}) for name in names),
        differences=differences,
        seed=raw.get("seed"),
        warnings=[str(line) for line in raw.get("warnings") or ()],
    )


def _metric_info(name: str, entry: Mapping[str, Any]) -> MetricInfo:
    return MetricInfo(
        name=name,
        label=entry.get("label") or name.replace("_", " "),
        unit=entry.get("unit") or "",
        higher_is_better=entry.get("higher_is_better", True),
        digits=entry.get("digits"),
    )


def parse_estimate(figure: Any, where: str) -> Estimate:
    """A figure as JSON holds it; ``where`` names it in errors.

    Raises:
        UserError: value, low or high is missing or not a finite number.
    """
    if not isinstance(figure, Mapping):
        raise UserError(f"{where} is {figure!r}; expected value, low and high")
    numbers = []
    for key in ("value", "low", "high"):
        number = figure.get(key)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise UserError(f"{where} has {key} = {number!r}; every figure must be a finite number")
        if not math.isfinite(number):
            raise UserError(f"{where} has {key} = {number!r}; every figure must be a finite number")
        numbers.append(float(number))
    value, low, high = numbers
    n = figure.get("n")
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 0):
        raise UserError(f"{where} has n = {n!r}, not a number of questions")
    return Estimate(value, low, high, n=n)
