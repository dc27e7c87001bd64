"""VQAv2, AdVQA and POPE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.evaluation.golden_checks import Check
from unigame.evaluation.base import Item, Prediction
from unigame.evaluation.tasks.pope.rules import confusion, lmms_eval_label, official_label
from unigame.evaluation.tasks.pope.task import POPE
from unigame.evaluation.tasks.vqav2.rules import clean_reply, normalise, soft_score
from unigame.evaluation.tasks.vqav2.task import VQAv2
from unigame.reports.metrics import value_of

Inputs = Mapping[str, Any]


def _normalise(inputs: Inputs) -> dict[str, str]:
    return {
        "official_and_lmms_eval": normalise(inputs["raw"], "official"),
        "mmf_textvqa_call": normalise(inputs["raw"], "textvqa"),
    }


def _score(inputs: Inputs) -> dict[str, float]:
    answers = inputs["answers"]
    if inputs.get("answers_lack_answer_id"):
        answers = [{"answer": answer} if isinstance(answer, str) else answer for answer in answers]
    prediction = inputs["prediction"]
    lmms_eval = soft_score(prediction, answers, "lmms_eval")
    return {
        "official": soft_score(prediction, answers, "official"),
        "lmms_eval": lmms_eval,
        "lmms_eval_vqa": lmms_eval,
        "textvqa_torchumm": soft_score(prediction, answers, "textvqa"),
    }


def _prompts(benchmark: type[VQAv2] | type[POPE]) -> Check:
    def check(inputs: Inputs) -> dict[str, str]:
        return {
            variant: benchmark(prompt=variant).prompt_for(inputs["question"])
            for variant in benchmark.prompt_variants
        }

    return check


def _parse(inputs: Inputs) -> dict[str, Any]:
    label = lmms_eval_label(inputs["response"])
    return {
        "official_label": official_label(inputs["response"]),
        "lmms_eval_prediction": label,
        "lmms_eval_correct_if_gt_yes": float(sum(confusion(label, "yes")[::3])),
        "lmms_eval_correct_if_gt_no": float(sum(confusion(label, "no")[::3])),
    }


def _aggregate(inputs: Inputs) -> dict[str, dict[str, float]]:
    items = [
        Item(f"random/{i}", "", reference={"subset": "random", "answer": truth})
        for i, (_, truth) in enumerate(inputs["pairs"])
    ]
    said = {
        item.id: Prediction(item.id, reply)
        for item, (reply, _) in zip(items, inputs["pairs"], strict=True)
    }
    figures = {}
    for parser in POPE.parser_variants:
        scored = POPE(parser=parser).score(items, said, Path())
        of_subset = {metric.name: value_of(metric) / metric.scale for metric in scored.metrics}
        figures[parser] = {**of_subset, **scored.details["counts"]["random"]}
    return figures


CHECKS: dict[str, Check] = {
    "VQAv2.normalise": _normalise,
    "VQAv2.score": _score,
    "AdVQA.score": _score,
    "VQAv2.torchumm_unigame_clean": lambda inputs: {"cleaned": clean_reply(inputs["raw"])},
    "POPE.parse": _parse,
    "POPE.aggregate": _aggregate,
    "prompt.VQAv2": _prompts(VQAv2),
    "prompt.POPE": _prompts(POPE),
}
