"""GenEval's rules for one picture: which objects count, and whether they are what was asked for.

Pure functions over boxes, scores and colour names, after ``evaluate_images.py`` and
``summary_scores.py`` of djghosh13/geneval: the same choices, order and reasons. Boxes are
(x0, y0, x1, y1) in pixels with y growing downwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball"),
    *("kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair"),
    *("couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop"),
    *("computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven"),
    *("toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
"""GenEval's names of the 80 COCO classes, in the detector's order."""

COLOURS = (
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
)
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""A detection counts if its score is above this; stricter where objects are counted."""
MAX_OBJECTS = 16
"""Of each class, only so many of the best detections count."""
POSITION_MARGIN = 0.1
"""Share of both boxes' sizes by which centres must differ before a relation holds."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One object that a detector found.

    Attributes:
        class_name: in GenEval's spelling.
        score: the detector's confidence, in [0, 1].
        box: (x0, y0, x1, y1) in pixels of the picture.
        mask: (H, W), bool, of the whole picture; None where the detector gives boxes only.
    """

    class_name: str
    score: float
    box: Box
    mask: NDArray[np.bool_] | None = None


Colours = Callable[[str, Sequence[Detection]], Sequence[str]]
"""(class name, objects of it) -> the colour of each."""


class Verdict(NamedTuple):
    """Whether a picture shows what was asked for; if not, why (one reason a line)."""

    correct: bool
    reason: str


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes whose corner pixels are both inside (so width + 1)."""
    inner = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - inner
    return inner / union if union else 0.0


def _area(box: Box) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def relative_position(a: Box, b: Box) -> list[str]:
    """Where ``a`` lies as seen from ``b``: none, one or two of ``RELATIONS``, in that order.

    The offset of the centres is shortened on each axis by a tenth of both boxes' sizes, and then
    measured against the length that it had before.
    """
    first, second = np.reshape(a, (2, 2)), np.reshape(b, (2, 2))  # (corner, axis)
    offset = first.mean(0, dtype=float) - second.mean(0, dtype=float)
    sizes = np.abs(first[1] - first[0]) + np.abs(second[1] - second[0])
    shortened = np.maximum(np.abs(offset) - POSITION_MARGIN * sizes, 0) * np.sign(offset)
    if (np.abs(shortened) < 1e-3).all():
        return []
    dx, dy = shortened / np.linalg.norm(offset)
    holds = (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5)
    return [relation for relation, true in zip(RELATIONS, holds, strict=True) if true]


def countable(detections: Iterable[Detection], tag: str) -> dict[str, list[Detection]]:
    """The detections that count for a prompt of this tag, by class, most confident first.

    Overlapping boxes of a class are all kept: the reference's limit on overlap is 1.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    by_class: dict[str, list[Detection]] = {}
    for detection in detections:
        by_class.setdefault(detection.class_name, []).append(detection)
    kept = {}
    for class_name, objects in by_class.items():
        # Sorted and then reversed, as the reference does: of equal scores the later goes first.
        order = np.argsort([each.score for each in objects])[::-1]
        confident = [objects[i] for i in order if objects[i].score > threshold][:MAX_OBJECTS]
        if confident:
            kept[class_name] = confident
    return kept


def colour_queries(
    metadata: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]]
) -> dict[str, list[Detection]]:
    """The objects whose colour ``judge`` is going to ask for, by class, in its order."""
    asked: dict[str, list[Detection]] = {}
    for wanted in metadata.get("include", ()):
        found = list(objects.get(wanted["class"], ()))[: wanted["count"]]
        enough = len(found) >= wanted["count"]
        if "color" in wanted and enough and len(found) > len(asked.get(wanted["class"], ())):
            asked[wanted["class"]] = found
    return asked


def judge(
    metadata: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]], colours: Colours
) -> Verdict:
    """Does a picture with these objects show what the prompt asked for?

    Every ``include`` must hold and no ``exclude``. Only the ``count`` most confident objects of a
    class are looked at: a less confident one of the right colour or place does not help.

    Args:
        metadata: a row of ``evaluation_metadata.jsonl``.
        objects: from ``countable``.
        colours: names the colours of objects; called for the objects of ``colour_queries`` only.
    """
    reasons: list[str] = []
    matched: list[Sequence[Detection] | None] = []
    for wanted in metadata.get("include", ()):
        found = list(objects.get(wanted["class"], ()))[: wanted["count"]]
        reason = (
            _too_few(wanted, found)
            or _wrong_colour(wanted, found, colours)
            or _wrong_place(wanted, found, matched)
        )
        matched.append(None if reason else found)
        reasons += [reason] if reason else []
    for unwanted in metadata.get("exclude", ()):
        class_name, limit = unwanted["class"], unwanted["count"]
        if len(objects.get(class_name, ())) >= limit:
            reasons.append(f"expected {class_name}<{limit}, found {len(objects[class_name])}")
    return Verdict(not reasons, "\n".join(reasons))


def _too_few(wanted: Mapping[str, Any], found: Sequence[Detection]) -> str:
    if len(found) >= wanted["count"]:
        return ""
    return f"expected {wanted['class']}>={wanted['count']}, found {len(found)}"


def _wrong_colour(wanted: Mapping[str, Any], found: Sequence[Detection], colours: Colours) -> str:
    if "color" not in wanted:
        return ""
    seen = list(colours(wanted["class"], found))
    colour, count = wanted["color"], wanted["count"]
    if seen.count(colour) >= count:
        return ""
    others = ", ".join(f"{seen.count(each)} {each}" for each in COLOURS if each in seen)
    return (
        f"expected {colour} {wanted['class']}>={count}, "
        f"found {seen.count(colour)} {colour}; and {others}"
    )


def _wrong_place(
    wanted: Mapping[str, Any],
    found: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
) -> str:
    if "position" not in wanted:
        return ""
    relation, landmark = wanted["position"]
    targets = matched[landmark]
    if targets is None:
        return f"no target for {wanted['class']} to be {relation}"
    for each in found:
        for target in targets:
            true = relative_position(each.box, target.box)
            if relation not in true:
                return (
                    f"expected {wanted['class']} {relation} target, "
                    f"found {' and '.join(true)} target"
                )
    return ""
