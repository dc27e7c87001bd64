"""The consistency score of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unigame.evaluation.base import Scored
from unigame.evaluation.summary import summarise
from unigame.reports.metrics import Metric, Unit


def _consistency(inputs: Mapping[str, Any]) -> dict[str, float]:
    figures = {
        "unifiedbench": (inputs["unifiedbench_0_100"] / 100, 100.0),
        "wise": (inputs["wise_0_1"], 1.0),
    }
    scored = {
        name: Scored([Metric("overall", "overall", (Unit("all", (value,)),), scale=scale)])
        for name, (value, scale) in figures.items()
    }
    score = summarise(scored)["consistency"]
    assert score is not None
    return {"score": score["value"]}


CHECKS = {"UniGame.consistency": _consistency}
