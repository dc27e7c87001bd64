"""MMMU, MMBench and NaturalBench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unigame.evaluation.items import shares
from unigame.evaluation.tasks.mmbench import rules as mmbench_parse
from unigame.evaluation.tasks.mmmu import rules as mmmu_parse
from unigame.evaluation.tasks.mmmu.task import MMMU
from unigame.evaluation.tasks.naturalbench import rules as naturalbench
from unigame.evaluation.tasks.naturalbench.task import NaturalBench
from unigame.reports.metrics import value_of

_MMMU_VARIANTS = {
    "official": "official",
    "lmms_eval_0.7.3": "lmms_eval",
    "bagel_torchumm_vlm_post_process": "bagel",
}
_LETTERS = "ABCDE"


def mmmu_choice(inputs: Mapping[str, Any]) -> dict[str, str]:
    choices = {
        name: mmmu_parse.parse_choice(inputs["response"], inputs["options"], variant, "golden")
        for name, variant in _MMMU_VARIANTS.items()
    }
    return {name: "RANDOM" if c.random else c.letter for name, c in choices.items()}


def mmmu_open(inputs: Mapping[str, Any]) -> dict[str, Any]:
    parsed = mmmu_parse.parse_open(inputs["response"])
    correct = mmmu_parse.open_correct(inputs["gold"], parsed)
    return {"parsed": parsed, "correct_official": correct, "correct_lmms_eval": correct}


def mmmu_aggregate(inputs: Mapping[str, Any]) -> dict[str, Any]:
    correct = {"open": mmmu_parse.open_correct, "multiple-choice": mmmu_parse.choice_correct}
    return mmmu_parse.summarise(
        (
            row["subdomain"],
            any(correct[row["question_type"]](row["answer"], one) for one in row["parsed_pred"]),
        )
        for row in inputs["results"]
    )


def mmmu_prompt(inputs: Mapping[str, Any]) -> dict[str, str]:
    parts = inputs["question"], inputs["options"], inputs["question_type"]
    return {name: mmmu_parse.build_prompt(*parts, name) for name in MMMU.prompt_variants}


def mmbench_letter(inputs: Mapping[str, Any]) -> dict[str, str | bool]:
    def letter(variant: str) -> str | bool:
        return mmbench_parse.PARSERS[variant](inputs["prediction"], inputs["choices"]) or False

    return {"lmms_eval": letter("lmms_eval"), "torchumm_vlmevalkit": letter("vlmevalkit")}


def mmbench_group(inputs: Mapping[str, Any]) -> dict[str, int]:
    rows = inputs["rows"]
    letters = [mmbench_parse.lmms_eval(row["prediction"], _options(row)) for row in rows]
    return {"hit": int(mmbench_parse.circular_hit([row["answer"] for row in rows], letters))}


def mmbench_aggregate(inputs: Mapping[str, Any]) -> dict[str, Any]:
    assert inputs["category_rule"] == "c{index%2}"
    hits = [(f"c{g['base_index'] % 2}", bool(g["hit"])) for g in inputs["groups"]]
    overall = shares(("all", hit) for _, hit in hits)["all"]
    return {"overall": overall, "category": shares(hits)}


def mmbench_prompt(inputs: Mapping[str, Any]) -> dict[str, str]:
    hint = "" if inputs["hint"] == "nan" else inputs["hint"]

    def prompt(variant: str) -> str:
        return mmbench_parse.build_prompt(inputs["question"], _options(inputs), hint, variant)

    return {"lmms_eval": prompt("lmms_eval"), "torchumm_vlmevalkit": prompt("vlmevalkit")}


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    return {letter: row[letter] for letter in _LETTERS if row.get(letter, "nan") != "nan"}


def naturalbench_label(inputs: Mapping[str, Any]) -> dict[str, int]:
    return {"label": naturalbench.extract(inputs["output"], inputs["question_type"])}


def naturalbench_group(inputs: Mapping[str, Any]) -> dict[str, float]:
    return _naturalbench([inputs["q0_i0,q0_i1,q1_i0,q1_i1"]])


def naturalbench_aggregate(inputs: Mapping[str, Any]) -> dict[str, float]:
    return _naturalbench(inputs["groups"])


def _naturalbench(groups: list[list[int]]) -> dict[str, float]:
    metrics = naturalbench.group_metrics({str(i): four for i, four in enumerate(groups)})
    return {metric.label.replace("-", "_"): value_of(metric) / 100 for metric in metrics}


def naturalbench_prompt(inputs: Mapping[str, Any]) -> dict[str, str]:
    parts = inputs["question"], inputs["question_type"]
    variants = NaturalBench.prompt_variants
    return {name: naturalbench.build_prompt(*parts, name) for name in variants}


CHECKS = {
    "MMMU.multi_choice": mmmu_choice,
    "MMMU.open": mmmu_open,
    "MMMU.aggregate": mmmu_aggregate,
    "MMBench.can_infer": mmbench_letter,
    "MMBench.circular_group": mmbench_group,
    "MMBench.aggregate": mmbench_aggregate,
    "NaturalBench.extract": naturalbench_label,
    "NaturalBench.group": naturalbench_group,
    "NaturalBench.aggregate": naturalbench_aggregate,
    "prompt.MMMU": mmmu_prompt,
    "prompt.MMBench": mmbench_prompt,
    "prompt.NaturalBench": naturalbench_prompt,
}
