"""WISE: reading a judge's reply, WiScore, the overall score, categories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unigame.evaluation.tasks.wise import rules as wise


def judge_reply(inputs: Mapping[str, Any]) -> dict[str, Any]:
    scores = wise.read_official(inputs["reply"])
    torchumm = wise.torchumm_record(inputs["reply"])
    accepted = wise.complete(scores)
    return {
        "official_legacy_and_lmms_eval": scores,
        "accepted": accepted,
        "wiscore": wise.wiscore(**scores) if accepted else None,
        "torchumm": torchumm,
        "torchumm_wiscore": wise.wiscore(**torchumm),
    }


def overall(inputs: Mapping[str, Any]) -> dict[str, Any]:
    scores = inputs["category_scores"]
    renormalised = wise.overall(scores)
    return {
        "overall": renormalised,
        "overall_lmms_eval": renormalised,
        "overall_official": wise.overall(scores, whole_set_only=True),
    }


CHECKS = {
    "WISE.judge_reply": judge_reply,
    "WISE.wiscore": lambda inputs: {"wiscore": wise.wiscore(**inputs)},
    "WISE.overall": overall,
    "WISE.category": lambda inputs: {"category": wise.category(inputs["prompt_id"])},
    "WISE_Verified.judge_reply": lambda inputs: {"parsed": wise.read_verified(inputs["reply"])},
}
