"""The consistency score of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unigame.evaluation.base import Scored
from unigame.evaluation.summary import summarise
from unigame.reports.metrics import Metric, Unit


def _scored(name: str, value: float, scale: float) -> Scored:
    return Scored([Metric(name, name, (Unit("all", (value / scale,)),), scale=scale)])


def _consistency(inputs: Mapping[str, Any]) -> dict[str, float]:
    parts = {
        "unifiedbench": _scored("overall", inputs["unifiedbench_0_100"], 100.0),
        "wise": _scored("wiscore", inputs["wise_0_1"], 1.0),
    }
    score = summarise(parts)["consistency"]
    assert score is not None
    return {"score": score["value"]}


CHECKS = {"UniGame.consistency": _consistency}
