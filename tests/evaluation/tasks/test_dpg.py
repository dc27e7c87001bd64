"""DPG-Bench from its CSV to scores."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

from unigame.errors import UserError
from unigame.evaluation.base import DataSource, Prediction
from unigame.evaluation.scorers.judges import Judge, JudgeUnavailable
from unigame.evaluation.scorers.judging import Retry
from unigame.evaluation.tasks.dpg.rules import (
    Answered,
    Question,
    metrics,
    parents_of,
    picture_score,
    read_answer,
    with_parents,
)
from unigame.evaluation.tasks.dpg.task import COLUMNS, DPG, FULL_SIZE
from unigame.reports.metrics import estimate, value_of

CAT = [  # proposition_id, dependency, tuple, question
    (1, "0", "entity - whole (cat)", "Is there a cat?"),
    (2, "1", "attribute - color (cat, black)", "Is the cat black?"),
    (3, "2", "attribute - texture (cat, shiny)", "Is the black cat shiny?"),
    (4, "0", "entity - whole (mat)", "Is there a mat?"),
    (5, "1,4", "relation - spatial (cat, mat, on)", "Is the cat on the mat?"),
]
GRAPH = [Question(1, "", (), ""), Question(2, "", (1,), ""), Question(3, "", (2,), "")]
NO_WAIT = Retry(attempts=2, reply_attempts=2, sleep=lambda _: None)


def write(folder, prompts, columns=COLUMNS):
    """``prompts``: item_id -> rows of (id, dependency, tuple, question)."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "dpg_bench.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for id, rows in prompts.items():
            for number, dependency, about, question in rows:
                table.writerow([id, f"the prompt {id}", number, dependency, about, question])
    return DataSource(root=folder)


class Says(Judge):
    """Replies by question, or by (number of the picture, question)."""

    name = "says"
    deterministic = True

    def __init__(self, replies=(), default="yes"):
        self.by_question, self.default, self.asked = dict(replies), default, []

    def reply(self, prompt, explanation, picture, rubric):
        assert not explanation and prompt in rubric.fill(prompt, "")
        self.asked.append((int(picture.stem), prompt))
        reply = self.by_question.get(self.asked[-1], self.by_question.get(prompt, self.default))
        if reply is None:
            raise JudgeUnavailable("judge: down", retryable=False)
        return reply


def drawn(items, folder):
    made = {}
    for item in items:
        paths = []
        for number in range(item.samples):
            paths.append(folder / item.id / f"{number}.png")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 2), (10 * number + 1, 0, 0)).save(paths[-1])
        made[item.id] = Prediction(item.id, pictures=tuple(paths))
    return made


def scored(tmp_path, judge, *, prompts=None, without=(), **options):
    benchmark = DPG(judge=judge, retry=NO_WAIT, **options)
    data = write(tmp_path / "data", prompts or {"cat": CAT})
    items = benchmark.load(data).items
    made = {id: each for id, each in drawn(items, tmp_path).items() if id not in without}
    return benchmark.score(items, made, tmp_path / "out")


def figures(found):
    return {metric.name: value_of(metric) for metric in found.metrics}


# ---- rules, worked out by hand -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("yes", True),
        ("Yes.", True),
        ("**No**", False),
        ("Yes, a black cat on a mat.", True),
        ("no, there is not", False),
        ("The answer is: NO.", False),
        ("<think>a cat, yes or no</think> yes", True),
        ("", None),
        ("maybe", None),
        ("Yes or no? No.", None),  # says both
        ("There is a cat.", None),
        ("yesterday", None),
        ("not sure", None),
    ],
)
def test_what_a_reply_says(reply, said):
    assert read_answer(reply) is said


@pytest.mark.parametrize(
    ("answers", "worth", "score"),
    [
        ((True, True, True), (True, True, True), 1.0),
        ((False, True, True), (False, False, False), 0.0),  # a grandchild falls with it
        ((True, False, True), (True, False, False), 1 / 3),
        ((True, True, False), (True, True, False), 2 / 3),
        ((True, True, None), (True, True, None), None),
        ((True, None, False), (True, None, False), None),
        ((None, True, True), (None, None, None), None),
        ((False, None, None), (False, False, False), 0.0),  # whatever they are: all lost
        ((True, False, None), (True, False, False), 1 / 3),
    ],
)
def test_a_question_is_worth_what_its_parents_allow(answers, worth, score):
    given = dict(zip((1, 2, 3), answers, strict=True))
    assert tuple(with_parents(GRAPH, given).values()) == worth
    assert picture_score(GRAPH, given) == (None if score is None else pytest.approx(score))


def test_parents_are_numbers_and_nought_is_none():
    assert parents_of("0") == () and parents_of(" 1, 3,1") == (1, 3)
    with pytest.raises(ValueError):
        parents_of("one")


def test_intervals_are_over_prompts():
    """Ten prompts of four equal pictures: 40 pictures must not count as 40."""
    graph = [Question(1, "", (), "entity - whole"), Question(2, "", (), "entity - part")]
    pictures = [
        Answered(f"{p}/{n}", str(p), graph, {1: p % 2 == 0, 2: p % 2 == 0})
        for p in range(10)
        for n in range(4)
    ]
    score, entity, part, whole = metrics(pictures)
    assert [part.name, whole.name] == ["entity_part", "entity_whole"]
    assert len(score.units) == 10 and len(entity.units) == 80
    wide, same = estimate(score), estimate(entity)
    assert wide["high"] - wide["low"] > 50
    assert same["high"] - same["low"] == pytest.approx(wide["high"] - wide["low"], abs=5)
    assert metrics([]) == []


# ---- the data ------------------------------------------------------------------------------------


def test_a_clone_of_the_repository_or_its_folder_is_read(tmp_path):
    prompts = {"cat": CAT, "7": [(1, "0", "global - (photo)", "Is it a photo?")]}
    write(tmp_path / "ELLA" / "dpg_bench", prompts)
    for root in (tmp_path / "ELLA", tmp_path / "ELLA" / "dpg_bench"):
        loaded = DPG().load(DataSource(root=root))
        assert [(item.id, item.prompt) for item in loaded.items] == [
            ("cat", "the prompt cat"),
            ("7", "the prompt 7"),
        ]
        assert loaded.items[0].samples == 4 and not loaded.skips.counts()
    questions = loaded.items[0].reference["questions"]
    assert questions[4]["parents"] == (1, 4) and questions[2]["category"] == "attribute - texture"
    assert len(DPG(samples=1).load(DataSource(root=root), limit=1).items) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((2, "9", "entity - whole (x)", "X?"), "a question depends on one that is not there"),
        ((1, "0", "entity - whole (x)", "X?"), "a proposition_id occurs twice"),
        ((2, "one", "entity - whole (x)", "X?"), "dependency is no list of numbers"),
        ((2, "0", "(x)", "X?"), "tuple names no category"),
        ((2, "0", "entity - whole (x)", " "), "empty question_natural_language"),
        (("two", "0", "entity - whole (x)", "X?"), "proposition_id is str, expected int"),
    ],
)
def test_a_prompt_with_a_faulty_question_is_left_out_and_counted(tmp_path, row, reason):
    data = write(tmp_path, {"cat": CAT, "odd": [CAT[0], row]})
    loaded = DPG().load(data)
    assert [item.id for item in loaded.items] == ["cat"]
    assert loaded.skips.counts() == {f"prompt: {reason}": 1}
    with pytest.raises(UserError, match=reason):
        DPG().load(write(tmp_path, {"odd": [CAT[0], row]}))


def test_what_is_missing_is_named_before_anything_is_drawn(tmp_path):
    with pytest.raises(UserError, match=r"dpg_bench\.csv"):
        DPG().load(DataSource())
    with pytest.raises(UserError, match="no column 'tuple'"):
        DPG().load(write(tmp_path, {"cat": CAT}, [c.replace("tuple", "tupel") for c in COLUMNS]))
    with pytest.raises(UserError, match="dpg needs a judge"):
        DPG().prepare()
    with pytest.raises(UserError, match="samples is 0"):
        DPG(samples=0)


# ---- scores --------------------------------------------------------------------------------------


def test_pictures_then_prompts_are_averaged_and_categories_keep_plain_answers(tmp_path):
    """By hand. cat: one picture without a cat (of 5 questions the mat alone is left: 1/5), three
    whole ones: (0.2 + 3) / 4 = 0.8. photo: 0. So the score is 40."""
    photo = [(1, "0", "global - (photo)", "Is it a photo?")]
    judge = Says({(2, "Is there a cat?"): "No.", "Is it a photo?": "no"})
    found = scored(tmp_path, judge, prompts={"cat": CAT, "photo": photo})
    assert figures(found) == pytest.approx(
        {
            "dpg": 40.0,
            "global": 0.0,
            "entity": 87.5,  # 7 of 8
            "attribute": 100.0,
            "relation": 100.0,
            "attribute_color": 100.0,
            "attribute_texture": 100.0,
        }
    )
    assert found.scorer["judge"] == "says" and found.scorer["rubric"]["name"] == "yes-or-no"
    assert found.details["pictures"] == 8 and found.details["questions"] == 4 * 5 + 4
    assert any(str(FULL_SIZE) in line for line in found.warnings)
    lines = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").open()]
    assert lines[2]["id"] == "cat/2" and lines[2]["score"] == pytest.approx(0.2)
    assert lines[2]["answered_no"] == ["Is there a cat?"]
    assert lines[2]["lost_with_a_parent"] == [CAT[i][3] for i in (1, 2, 4)]


def test_the_official_variant_follows_the_reference_to_its_bugs(tmp_path):
    photo = [(1, "0", "global - (photo)", "Is it a photo?")]
    judge = Says({(3, "Is there a cat?"): "no", (1, "Is there a mat?"): "hm"})
    # The first row is never read, so "lost", whose questions hang on it, is lost.
    prompts = {"lost": CAT, "photo": photo, "cat": CAT}
    benchmark = DPG(judge=judge, parser="official")
    loaded = benchmark.load(write(tmp_path / "data", prompts))
    assert [item.id for item in loaded.items] == ["photo", "cat"]
    assert list(loaded.skips.counts()) == ["prompt: a question depends on one that is not there"]
    found = scored(tmp_path, judge, prompts=prompts, parser="official")
    # Of picture 1 the mat and what lies on it are lost, of picture 3 all but the mat.
    assert figures(found)["dpg"] == pytest.approx(100 * (1 + (1 + 0.6 + 1 + 0.2) / 4) / 2)
    # The last picture has a mat and no cat; the others are not looked at.
    assert figures(found)["entity"] == 50.0 and not found.unscored


def test_a_question_without_an_answer_leaves_its_picture_out(tmp_path):
    """Not where a parent is worth 0: then its answer changes nothing."""
    judge = Says(
        {
            (0, "Is there a mat?"): None,
            (1, "Is there a mat?"): "perhaps",
            (2, "Is there a cat?"): "no",
            (2, "Is the cat black?"): None,
        }
    )
    found = scored(tmp_path, judge)
    assert figures(found)["dpg"] == pytest.approx(100 * (0.2 + 1) / 2)
    assert found.details["pictures_without_a_score"] == 2
    assert found.details["questions_not_answered"] == 3 and not found.unscored
    assert any("2 of 4 pictures have no score" in line for line in found.warnings)
    lines = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").open()]
    assert [line["score"] for line in lines[:2]] == [None, None]
    assert lines[0]["not_answered"] == {"Is there a mat?": "judge: down"}
    assert lines[1]["not_answered"] == {"Is there a mat?": "judge: unreadable reply"}


def test_a_prompt_without_a_score_says_why(tmp_path):
    judge = Says(default=None)
    found = scored(tmp_path, judge, prompts={"cat": CAT, "not/drawn": CAT}, without=["not/drawn"])
    assert found.unscored == {"cat": "judge: down", "not/drawn": "no picture was drawn"}
    assert found.metrics == []


def test_a_second_run_asks_only_what_is_missing(tmp_path):
    first = Says({(1, "Is the cat black?"): None})
    scored(tmp_path, first)
    assert len(first.asked) == 4 * len(CAT)
    second = Says()
    assert figures(scored(tmp_path, second))["dpg"] == 100.0
    assert second.asked == [(1, "Is the cat black?")]


def test_pictures_lie_as_the_reference_s_scorer_wants_them(tmp_path):
    """``{item_id}.png``, cut at multiples of one picture's size, in rows of two."""
    scored(tmp_path, Says(), prompts={"cat": CAT, "../out": CAT})
    (file,) = (tmp_path / "out" / "official").iterdir()
    grid = Image.open(file)
    assert file.name == "cat.png" and grid.size == (8, 4)
    corners = [grid.getpixel(place)[0] for place in ((0, 0), (4, 0), (0, 2), (4, 2))]
    assert corners == [1, 11, 21, 31]
    scored(tmp_path, Says(), samples=1)
    assert Image.open(tmp_path / "out" / "official" / "cat.png").size == (4, 2)
