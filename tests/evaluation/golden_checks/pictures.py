"""GenEval and UnifiedBench."""

from pathlib import Path

from unigame.evaluation.base import Item
from unigame.evaluation.drawn import Drawn
from unigame.evaluation.tasks.geneval import rules as geneval_rules
from unigame.evaluation.tasks.geneval import task as geneval
from unigame.evaluation.tasks.geneval.rules import Detection, Verdict
from unigame.evaluation.tasks.unifiedbench import rules as cosines
from unigame.evaluation.tasks.unifiedbench import task as unifiedbench
from unigame.reports.metrics import value_of


def image(inputs):
    found = [
        Detection(each["class"], each["score"], tuple(each["box"])) for each in inputs["detections"]
    ]
    colour_of = {
        id(detection): each.get("color")
        for detection, each in zip(found, inputs["detections"], strict=True)
    }
    metadata = inputs["metadata"]
    verdict = geneval_rules.judge(
        metadata,
        geneval_rules.countable(found, metadata["tag"]),
        lambda class_name, objects: [colour_of[id(each)] for each in objects],
    )
    return verdict._asdict()


def overall(inputs):
    judged = [
        (Drawn(f"{n}", Item(f"{n}", "", reference={"tag": tag}), 0, Path(), ""), Verdict(right, ""))
        for n, (tag, right) in enumerate(inputs["images"])
    ]
    score, *by_tag, every = [value_of(metric) for metric in geneval.metrics(judged)]
    tags = [tag for tag in geneval_rules.TAGS if any(tag == one for one, _ in inputs["images"])]
    return {
        "per_tag": dict(zip(tags, by_tag, strict=True)),
        "overall_mean_over_tags": score,
        "micro_image_accuracy_not_the_score": every,
    }


def unified(inputs):
    drawn = {str(id) for id in inputs["references"]} & {str(id) for id in inputs["generated"]}
    by_encoder = {
        encoder: {id: value for id, value in by_id.items() if id in drawn}
        for encoder, by_id in inputs["cosines"].items()
    }
    score, *parts = cosines.metrics(by_encoder)
    return {
        "averages_by_model": {
            metric.name.removeprefix("cosine_"): value_of(metric) / 100 for metric in parts
        },
        "overall_average": value_of(score) / 100,
    }


CHECKS = {
    "GenEval.iou": lambda i: {"iou": geneval_rules.iou(i["box_a"], i["box_b"])},
    "GenEval.relative_position": lambda i: {
        # The reference gives a set: the cases hold it sorted.
        "relations_of_a_to_b": sorted(geneval_rules.relative_position(i["box_a"], i["box_b"]))
    },
    "GenEval.image": image,
    "GenEval.overall": overall,
    "UnifiedBench.aggregate": unified,
    "prompt.UnifiedBench_caption": lambda i: {
        "torchumm_default_from_UAE_demo": unifiedbench.CAPTION_PROMPT
    },
}
