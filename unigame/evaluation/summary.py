"""The two scores that the paper makes of several benchmarks.

    consistency    = 0.6 * UnifiedBench (0-100) + 0.4 * 100 * WISE (0-1)
    understanding  = mean of VQAv2, MMMU, MMBench and POPE (0-100)

What goes in is each benchmark's headline metric, the one that the table shows, so that the score
can be checked against its columns. For POPE the paper does not say whether that is accuracy or F1;
the record names the metric that was taken. A score with a part missing is refused, not renormalised
over the rest: it would be another score under the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unigame.evaluation.base import Scored
from unigame.reports.combined import Part, combine
from unigame.reports.metrics import num_clusters, value_of

CONSISTENCY = {"unifiedbench": 0.6, "wise": 0.4}
UNDERSTANDING = {name: 0.25 for name in ("vqav2", "mmmu", "mmbench", "pope")}


def summarise(scored: Mapping[str, Scored]) -> dict[str, dict[str, Any] | None]:
    """Both scores for the record, from what scoring found by benchmark name.

    Each is None where none of its benchmarks was run. Otherwise it has ``value``, ``low``,
    ``high``, ``n``, ``clusters`` (of the part that has fewest) and ``parts``; or, where it is
    refused, ``value`` None and the ``reason``.
    """
    return {
        "consistency": _weighted(scored, CONSISTENCY),
        "understanding": _weighted(scored, UNDERSTANDING),
    }


def _weighted(scored: Mapping[str, Scored], weights: Mapping[str, float]) -> dict[str, Any] | None:
    if not any(name in scored for name in weights):
        return None
    reason = _refusal(scored, weights)
    if reason:
        return {"value": None, "reason": reason}
    parts = {name: Part(scored[name].metrics[0], weight) for name, weight in weights.items()}
    listed = [
        {
            "benchmark": name,
            "metric": part.metric.name,
            "label": part.metric.label,
            "weight": part.weight,
            "value": 100 * value_of(part.metric) / part.metric.scale,
            "n": len(part.metric.units),
            "unscored": len(scored[name].unscored),
        }
        for name, part in parts.items()
    ]
    clusters = min(num_clusters(part.metric) for part in parts.values())
    return {**combine(list(parts.values())), "clusters": clusters, "parts": listed}


def _refusal(scored: Mapping[str, Scored], weights: Mapping[str, float]) -> str:
    """Why the score must not be computed, as the end of a sentence; empty if it may."""
    missing = [name for name in weights if name not in scored]
    if missing:
        return f"needs {', '.join(missing)} as well"
    empty = [name for name in weights if not _has_headline(scored[name])]
    if empty:
        return f"has nothing scored in {', '.join(empty)}"
    if "unifiedbench" in weights and scored["unifiedbench"].metrics[0].name != "overall":
        return "has a UnifiedBench of fewer than four encoders, which is another score"
    return ""


def _has_headline(scored: Scored) -> bool:
    return bool(scored.metrics) and bool(scored.metrics[0].units)
