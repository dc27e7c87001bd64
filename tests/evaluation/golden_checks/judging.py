"""WISE: reading a judge's reply, WiScore, the overall score, categories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unigame.evaluation.tasks.wise import rules as wise
from unigame.reports.metrics import Unit, value_of


def judge_reply(inputs: Mapping[str, Any]) -> dict[str, Any]:
    scores = wise.read_official(inputs["reply"])
    torchumm = dict.fromkeys(wise.SCORES, 9.9) | wise.read_torchumm(inputs["reply"])  # 9.9: unread
    accepted = wise.complete(scores)
    return {
        "official_legacy_and_lmms_eval": scores,
        "accepted": accepted,
        "wiscore": wise.wiscore(**scores) if accepted else None,
        "torchumm": torchumm,
        "torchumm_wiscore": wise.wiscore(**torchumm),
    }


def overall(inputs: Mapping[str, Any]) -> dict[str, Any]:
    units = [
        Unit(f"{name}/{i}", (value,), group=name)
        for name in wise.WEIGHTS
        for i, value in enumerate(inputs["category_scores"].get(name, ()))
    ]
    renormalised = value_of(wise.overall_metric(units)) if units else None
    whole = {unit.group for unit in units} == set(wise.WEIGHTS)
    return {
        "overall": renormalised,
        "overall_lmms_eval": renormalised,
        "overall_official": renormalised if whole else None,
    }


CHECKS = {
    "WISE.judge_reply": judge_reply,
    "WISE.wiscore": lambda inputs: {"wiscore": wise.wiscore(**inputs)},
    "WISE.overall": overall,
    "WISE.category": lambda inputs: {"category": wise.category(inputs["prompt_id"])},
    "WISE_Verified.judge_reply": lambda inputs: {"parsed": wise.read_verified(inputs["reply"])},
}
