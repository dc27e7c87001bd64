"""The consistency score of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unigame.evaluation.summary import consistency_score


def _consistency(inputs: Mapping[str, Any]) -> dict[str, float]:
    return {"score": consistency_score(inputs["unifiedbench_0_100"], inputs["wise_0_1"])}


CHECKS = {"UniGame.consistency": _consistency}
