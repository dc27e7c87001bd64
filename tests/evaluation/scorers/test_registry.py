"""Scorers of a user's own, chosen by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from unigame import registry
from unigame.errors import UserError
from unigame.evaluation.scorers.encoders import encoder_list, open_encoder
from unigame.evaluation.scorers.judges import Judge, parse_judge
from unigame.evaluation.tasks.geneval.task import GenEval
from unigame.evaluation.tasks.mmbench.task import MMBench
from unigame.evaluation.tasks.wise.task import WISE


class Brightness:  # a whole scorer of a user's own
    name = "brightness"

    def encode(self, images):
        return np.stack([np.asarray(image, float).mean((0, 1)) for image in images])


class Strict(Judge):
    name = "strict"

    def __init__(self, mark="0"):
        self.mark = mark

    def reply(self, prompt, explanation, picture, rubric):
        return f"Consistency: {self.mark}"


class Blind:
    name = "blind"

    def detect(self, images):
        return [[] for _ in images]

    def classify(self, image, detections, class_name):
        return ["red"] * len(detections)


def first(question, options, reply):
    return next(iter(options))


@pytest.fixture(autouse=True)
def plug_ins(monkeypatch):
    here = {"brightness": "Brightness", "strict": "Strict", "blind": "Blind", "first": "first"}

    def entries(group):
        found = [EntryPoint(n, f"{__name__}:{v}", group) for n, v in here.items()]
        return found if group == "unigame.scorers" else []

    monkeypatch.setattr(registry, "entry_points", entries)


def test_an_encoder_by_name():
    assert encoder_list("clip,brightness") == ["clip", "brightness"]
    label, encoder = open_encoder("brightness")
    assert label == "brightness" and isinstance(encoder, Brightness)


def test_a_judge_by_name_takes_an_argument():
    assert parse_judge("strict").mark == "0"
    assert WISE(judge="strict:2").judge.mark == "2"


def test_detector_colours_and_matcher_by_name():
    bench = GenEval(detector="blind", colours="blind")
    assert [type(scorer) for scorer in bench._scorers()] == [Blind, Blind]
    assert bench._classes is None, "it may know other classes than COCO's"
    assert MMBench(matcher="first").matcher is first


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_judge("brightness"), "scorer 'brightness' .* has no method reply"),
        (lambda: open_encoder("strict"), "scorer 'strict' .* has no method encode"),
        (lambda: MMBench(matcher="blind"), "scorer 'blind' .* has no method __call__"),
        (lambda: parse_judge("strikt"), "no judge 'strikt'.*strict"),
    ],
)
def test_a_scorer_of_another_kind_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
