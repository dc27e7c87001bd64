"""GenEval and UnifiedBench."""

from unigame.evaluation.tasks.geneval import rules as geneval_rules
from unigame.evaluation.tasks.geneval.rules import Detection
from unigame.evaluation.tasks.unifiedbench import rules as cosines
from unigame.evaluation.tasks.unifiedbench import task as unifiedbench


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
    result = geneval_rules.aggregate((tag, bool(correct)) for tag, correct in inputs["images"])
    return {
        "per_tag": result.per_tag,
        "overall_mean_over_tags": result.overall,
        "micro_image_accuracy_not_the_score": result.images,
    }


def unified(inputs):
    result = cosines.aggregate(inputs["cosines"], inputs["references"], inputs["generated"])
    return {"averages_by_model": result.averages, "overall_average": result.overall}


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
