import numpy as np
import pytest

from unigame.evaluation.tasks.geneval import rules
from unigame.evaluation.tasks.geneval.rules import Detection


def found(class_name, score=0.95, box=(0, 0, 10, 10)):
    return Detection(class_name, score, box)


def decide(metadata, detections, colours=()):
    names = dict(zip(map(id, detections), colours, strict=False))
    objects = rules.countable(detections, metadata["tag"])
    return rules.judge(metadata, objects, lambda _, asked: [names[id(each)] for each in asked])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # d = (-20, 0), shortened by a tenth of 10 + 10 to -18, over the unshortened 20: -0.9
        ((0, 0, 10, 10), (20, 0, 30, 10), ["left of"]),
        ((20, 0, 30, 10), (0, 0, 10, 10), ["right of"]),
        ((0, 0, 10, 10), (0, 20, 10, 30), ["above"]),
        ((0, 20, 10, 30), (0, 0, 10, 10), ["below"]),
        ((20, 20, 30, 30), (0, 0, 10, 10), ["right of", "below"]),
        ((0, 20, 10, 30), (20, 0, 30, 10), ["left of", "below"]),
        # Shortened by 20: d = 40 -> 20, over 40 exactly 0.5, which is not enough.
        ((0, 0, 100, 100), (40, 0, 140, 100), []),
        ((0, 0, 100, 100), (41, 0, 141, 100), ["left of"]),
        ((0, 0, 10, 10), (0, 0, 10, 10), []),
    ],
)
def test_relative_position(a, b, expected):
    assert rules.relative_position(a, b) == expected


def test_iou_counts_both_edge_pixels():
    assert rules.iou((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(50 / 150)
    assert rules.iou((5, 5, 1, 1), (9, 9, 2, 2)) == 0.0  # empty boxes have no union


@pytest.mark.parametrize(("tag", "kept"), [("colors", [0.95, 0.9, 0.31]), ("counting", [0.95])])
def test_only_scores_above_the_threshold_count(tag, kept):
    detections = [found("dog", score) for score in (0.3, 0.9, 0.31, 0.95)]
    assert [each.score for each in rules.countable(detections, tag)["dog"]] == kept
    assert rules.countable(detections[:1], tag) == {}


def test_of_equal_scores_the_later_goes_first_and_sixteen_are_kept():
    first, second = found("dog", box=(0, 0, 1, 1)), found("dog", box=(5, 5, 6, 6))
    assert rules.countable([first, second], "colors")["dog"] == [second, first]
    many = [found("dog", score) for score in np.linspace(0.4, 0.8, 20)]
    kept = rules.countable(many, "colors")["dog"]
    assert [each.score for each in kept] == sorted((each.score for each in many), reverse=True)[:16]


def test_a_count_too_high_is_wrong_only_if_excluded():
    metadata = {"tag": "counting", "include": [{"class": "dog", "count": 2}]}
    three = [found("dog")] * 3
    assert decide(metadata, three).correct
    metadata["exclude"] = [{"class": "dog", "count": 3}]
    assert decide(metadata, three) == (False, "expected dog<3, found 3")
    assert decide(metadata, three[:2]) == (True, "")
    assert decide(metadata, three[:1]) == (False, "expected dog>=2, found 1")


def test_every_one_of_the_counted_objects_must_have_the_colour():
    metadata = {"tag": "colors", "include": [{"class": "cup", "count": 2, "color": "blue"}]}
    cups = [found("cup", score) for score in (0.9, 0.8, 0.7)]
    assert decide(metadata, cups, ["blue", "blue", "red"]).correct
    verdict = decide(metadata, cups, ["blue", "red", "blue"])
    assert verdict.reason == "expected blue cup>=2, found 1 blue; and 1 red, 1 blue"


def test_colours_are_listed_in_the_order_of_the_ten():
    metadata = {"tag": "colors", "include": [{"class": "cup", "count": 3, "color": "pink"}]}
    cups = [found("cup", score) for score in (0.9, 0.8, 0.7)]
    reason = decide(metadata, cups, ["white", "red", "white"]).reason
    assert reason == "expected pink cup>=3, found 0 pink; and 1 red, 2 white"


POSITION = {
    "tag": "position",
    "include": [
        {"class": "cat", "count": 1},
        {"class": "dog", "count": 1, "position": ["above", 0]},
    ],
}


def test_position_is_that_of_the_subject_seen_from_the_landmark():
    cat, dog = found("cat", box=(0, 50, 10, 60)), found("dog", box=(0, 0, 10, 10))
    assert decide(POSITION, [cat, dog]).correct
    below = found("dog", box=(0, 90, 10, 99))
    assert decide(POSITION, [cat, below]).reason == "expected dog above target, found below target"
    assert decide(POSITION, [dog]).reason == (
        "expected cat>=1, found 0\nno target for dog to be above"
    )


def test_position_is_not_looked_at_where_the_colour_is_wrong():
    metadata = {
        "tag": "position",
        "include": [
            {"class": "cat", "count": 1},
            {"class": "dog", "count": 1, "color": "red", "position": ["above", 0]},
        ],
    }
    pair = [found("cat", box=(0, 50, 10, 60)), found("dog", box=(0, 90, 10, 99))]
    assert decide(metadata, pair, ["white", "blue"]).reason.count("\n") == 0


def test_every_pair_of_subject_and_landmark_must_hold():
    metadata = {
        "tag": "position",
        "include": [
            {"class": "cat", "count": 2},
            {"class": "dog", "count": 1, "position": ["above", 0]},
        ],
    }
    cats = [found("cat", 0.9, (0, 50, 10, 60)), found("cat", 0.8, (0, 0, 10, 10))]
    assert not decide(metadata, [*cats, found("dog", box=(0, 20, 10, 30))]).correct


def test_colours_are_asked_for_the_counted_objects_only():
    metadata = {
        "tag": "color_attr",
        "include": [
            {"class": "cup", "count": 1, "color": "red"},
            {"class": "dog", "count": 2, "color": "blue"},
            {"class": "cat", "count": 1},
        ],
    }
    detections = [found("cup", 0.9), found("cup", 0.8), found("dog"), found("cat")]
    asked = rules.colour_queries(metadata, rules.countable(detections, "color_attr"))
    assert asked == {"cup": [detections[0]]}
