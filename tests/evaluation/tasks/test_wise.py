"""WISE from files in its real schema to scores."""

from __future__ import annotations

import json

import datasets
import pytest
from PIL import Image

from tests.evaluation.scorers.judge_server import Answer, judge_server, text_of
from unigame.errors import UserError
from unigame.evaluation.base import DataSource, Prediction
from unigame.evaluation.scorers.judge_openai import OpenAIJudge
from unigame.evaluation.scorers.judges import Judge, Rubric
from unigame.evaluation.scorers.judging import Retry
from unigame.evaluation.tasks.wise.rules import (
    CATEGORY_IDS,
    SCORES,
    WEIGHTS,
    category,
    overall_metric,
    read_lenient,
    read_official,
    read_torchumm,
    usable,
)
from unigame.evaluation.tasks.wise.task import FIRST_PROMPT, LISTS, WISE
from unigame.reports.metrics import Unit, value_of

LABELS = {
    "culture": "Cultural knowledge",
    "time": "time",
    "space": "Space",
    "biology": "Biology",
    "physics": "Physical Knowledge",
    "chemistry": "Chemistry",
}


def row(prompt_id, **changes):
    text = FIRST_PROMPT if prompt_id == 1 else f"prompt {prompt_id}"
    return {
        "Prompt": text,
        "Explanation": f"explanation {prompt_id}",
        "Category": LABELS.get(category(prompt_id), "?"),
        "Subcategory": "Festival",
        "prompt_id": prompt_id,
        **changes,
    }


def write_lists(folder, ids, **changes):
    """The three files, with those of the rows that are asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(LISTS, (range(1, 401), range(401, 701), range(701, 1001)), strict=True):
        rows = [changes.get(f"row{i}", row(i)) for i in ids if i in part]
        if rows:
            (folder / name).write_text(json.dumps(rows), encoding="utf-8")
    return DataSource(root=folder)


class FixedJudge(Judge):
    """Says what it is told to say of each prompt."""

    name = "fixed"

    def __init__(self, replies, default="Consistency: 2\nRealism: 2\nAesthetic Quality: 2"):
        self.by_prompt, self.default, self.asked = replies, default, []

    def reply(self, prompt, explanation, picture, rubric):
        self.asked.append((prompt, explanation))
        return self.by_prompt.get(prompt, self.default)


def scores(consistency, realism, aesthetic):
    return f"Consistency: {consistency}\nRealism: {realism}\nAesthetic Quality: {aesthetic}"


def drawn(items, folder, without=()):
    folder.mkdir(exist_ok=True)
    made = {}
    for item in items:
        path = folder / f"{item.id}.png"
        Image.new("RGB", (4, 4), (int(item.id) % 256, 0, 0)).save(path)
        made[item.id] = Prediction(item.id, pictures=(path,))
    return {id: p for id, p in made.items() if id not in without}


SIX = (1, 2, 401, 568, 701, 801, 901)  # culture has two


# ---- rules beyond the golden cases ---------------------------------------------------------------


def test_categories_and_weights_are_those_of_the_full_set():
    assert [len(ids) for ids in CATEGORY_IDS.values()] == [400, 167, 133, 100, 100, 100]
    for name, ids in CATEGORY_IDS.items():
        assert WEIGHTS[name] == pytest.approx(len(ids) / 1000)
        assert {category(i) for i in ids} == {name}
    assert {category(i) for i in (0, -1, 1001)} == {"unknown"}


@pytest.mark.parametrize(
    ("reply", "official", "torchumm", "lenient"),
    [
        ("**Consistency:** 1 **Realism:** 0 **Aesthetic Quality:** 2", None, None, (1, 0, 2)),
        ("Consistency：1 Realism：0 Aesthetic Quality：2", None, (1, 0, 2), (1, 0, 2)),
        ('{"consistency": 1, "realism": 0, "aesthetic_quality": 2}', None, None, (1, 0, 2)),
        ("2\n1\n0", (2, 1, 0), None, (2, 1, 0)),
        ("consistency 1 realism 1 aesthetic quality 1", (1, 1, 1), (1, 1, 1), (1, 1, 1)),
        (
            "Realism: 0 Consistency: 1 Aesthetic Quality: 1 Realism: 2",
            (1, 2, 1),
            (1, 2, 1),
            (1, 2, 1),
        ),
        ("Consistency: 1.5 Realism: 1 Aesthetic Quality: 1", (1, 1, 1), (1, 1, 1), None),
        ("Consistency: 10 Realism: 1 Aesthetic Quality: 1", (1, 1, 1), (1, 1, 1), None),
        ("Consistency: 8 Realism: 7 Aesthetic Quality: 9", None, None, None),
        ("Consistency: 2 Realism: 1", None, None, None),
    ],
)
def test_what_each_variant_can_use(reply, official, torchumm, lenient):
    for read, expected in (
        (read_official, official),
        (read_torchumm, torchumm),
        (read_lenient, lenient),
    ):
        found = read(reply)
        assert usable(found) == (expected is not None)
        if expected is not None:
            assert found == dict(zip(SCORES, expected, strict=True))
        assert 9.9 not in found.values()


def test_overall_of_a_full_set_is_the_plain_mean():
    values = {i: (i * 37 % 101) / 100 for ids in CATEGORY_IDS.values() for i in ids}
    units = [
        Unit(str(i), (values[i],), group=name) for name, ids in CATEGORY_IDS.items() for i in ids
    ]
    assert value_of(overall_metric(units)) == pytest.approx(sum(values.values()) / 1000)


# ---- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "data", "WISE_legacy/data"])
def test_the_three_lists(tmp_path, folder):
    write_lists(tmp_path / folder, SIX)
    (tmp_path / folder / "cultural_common_sense_rewrite.json").write_text("[]")
    loaded = WISE().load(DataSource(root=tmp_path))
    assert [item.id for item in loaded.items] == [str(i) for i in SIX]
    first = loaded.items[0]
    assert first.prompt == FIRST_PROMPT
    assert first.samples == 1 and first.pictures == ()
    assert first.reference == {
        "explanation": "explanation 1",
        "category": "culture",
        "subcategory": "Festival",
    }
    assert loaded.skips.kept == 7 and loaded.skips.skipped == {}
    assert len(loaded.dataset.fingerprint) == 64


def test_the_hub_copy_as_parquet(tmp_path):
    rows = [{**row(i), "Hint": "a hint"} for i in SIX]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "test-00000-of-00001.parquet"))
    loaded = WISE().load(DataSource(root=tmp_path))
    assert [item.id for item in loaded.items] == [str(i) for i in SIX]
    assert loaded.dataset.split == "test"


def test_limit_takes_the_first(tmp_path):
    source = write_lists(tmp_path, SIX)
    assert [item.id for item in WISE().load(source, limit=3).items] == ["1", "2", "401"]
    assert (
        WISE().load(source, limit=3).dataset.fingerprint != WISE().load(source).dataset.fingerprint
    )


def test_malformed_rows_are_counted(tmp_path):
    source = write_lists(
        tmp_path,
        (*SIX, 2, 3, 4, 5, 6, 7),
        row3=row(3, Prompt="  "),
        row4=row(4, Prompt=None),
        row5=row(5, Explanation=["a"]),
        row6={**row(6), "prompt_id": 1001},
        row7="not a row",
    )
    loaded = WISE().load(source)
    assert len(loaded.items) == 7
    assert loaded.skips.counts() == {
        "prompt_id occurs twice": 1,
        "empty Prompt": 1,
        "missing column Prompt": 1,
        "Explanation is list, expected str": 1,
        "prompt_id is not between 1 and 1000": 1,
        "missing column prompt_id": 1,
    }


def test_another_layout_names_the_columns(tmp_path):
    (tmp_path / LISTS[0]).write_text(json.dumps([{"text": "a", "id": 1}]))
    with pytest.raises(UserError, match="columns are text, id, but Prompt, Explanation, prompt_id"):
        WISE().load(DataSource(root=tmp_path))
    (tmp_path / LISTS[0]).write_text("{}")
    with pytest.raises(UserError, match="not a list of prompts"):
        WISE().load(DataSource(root=tmp_path))


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path.name)):
        WISE().load(DataSource(root=tmp_path))


def test_wise_verified_is_refused_by_its_numbering(tmp_path):
    source = write_lists(tmp_path, SIX, row568=row(568, Category="Biology"))
    with pytest.raises(UserError, match="prompt 568 .* WISE_Verified"):
        WISE().load(source)


def test_wise_verified_is_refused_by_its_file_names(tmp_path):
    (tmp_path / "cultural_common_sense_verified.json").write_text(json.dumps([row(1)]))
    with pytest.raises(UserError, match="WISE_Verified.*WISE_legacy/data"):
        WISE().load(DataSource(root=tmp_path))


def test_wise_verified_is_refused_by_its_first_prompt(tmp_path):
    ids = range(1, 401)
    assert len(WISE().load(write_lists(tmp_path / "legacy", ids)).items) == 400
    source = write_lists(tmp_path / "other", ids, row1=row(1, Prompt="The round pastry"))
    with pytest.raises(UserError, match="prompt 1 is 'The round pastry'"):
        WISE().load(source)


def test_official_needs_all_prompts(tmp_path):
    source = write_lists(tmp_path, range(1, 1001))
    assert len(WISE(parser="official").load(source).items) == 1000
    with pytest.raises(UserError, match="there are 10; drop --limit"):
        WISE(parser="official").load(source, limit=10)


# ---- scoring -------------------------------------------------------------------------------------


@pytest.fixture
def six(tmp_path):
    items = WISE().load(write_lists(tmp_path / "data", SIX)).items
    return items, drawn(items, tmp_path / "drawn")


def figures(scored):
    return {metric.name: value_of(metric) for metric in scored.metrics}


def test_scores(six, tmp_path):
    items, predictions = six
    judge = FixedJudge({FIRST_PROMPT: scores(0, 2, 2), "prompt 401": scores(1, 1, 1)})
    scored = WISE(judge=judge).score(items, predictions, tmp_path)
    found = figures(scored)
    assert scored.metrics[0].name == "wiscore"
    assert found["culture"] == pytest.approx((0.3 + 1) / 2)
    assert found["time"] == pytest.approx(0.5)
    assert found["wiscore"] == pytest.approx(0.4 * 0.65 + 0.167 * 0.5 + 0.433)
    assert found["consistency"] == pytest.approx((0 + 1 + 5 * 2) / 7)
    assert scored.unscored == {} and scored.unparsed == []
    assert scored.details["prompts"] == "part of legacy WISE"
    assert scored.details["wiscore_with_unscored_as_0"] == pytest.approx(found["wiscore"])
    assert scored.scorer["judge"] == "fixed"
    assert scored.scorer["rubric"]["sha256"] == Rubric().sha256
    assert (FIRST_PROMPT, "explanation 1") in judge.asked
    json.dumps([scored.scorer, scored.details])


def test_no_stand_in_is_ever_averaged(six, tmp_path):
    items, predictions = six
    judge = FixedJudge({FIRST_PROMPT: "I cannot.", "prompt 2": scores(1, 1, 1)})
    del predictions["701"]
    predictions["801"] = Prediction("801", error="out of memory")
    quick = Retry(sleep=lambda seconds: None)
    for parser in ("lmms_eval", "torchumm", "lenient"):
        wise = WISE(judge=judge, parser=parser, retry=quick)
        scored = wise.score(items, predictions, tmp_path / parser)
        assert scored.unscored == {
            "1": "judge: unreadable reply",
            "701": "no picture",  # 801 is the harness's to count
        }
        found = figures(scored)
        assert found["culture"] == pytest.approx(0.5)
        assert "biology" not in found and "physics" not in found
        assert found["wiscore"] == pytest.approx((0.4 * 0.5 + 0.167 + 0.133 + 0.1) / 0.8)
        as_zero = 0.4 * 0.25 + 0.167 + 0.133 + 0.1
        assert scored.details["wiscore_with_unscored_as_0"] == pytest.approx(as_zero)
        assert scored.warnings[0].startswith("3 of 7 prompts have no score")
        assert "no score in biology, physics" in scored.warnings[1]


def test_official_refuses_an_incomplete_judgement_but_keeps_it(six, tmp_path):
    items, predictions = six
    judge = FixedJudge({FIRST_PROMPT: "I cannot."})
    wise = WISE(judge=judge, parser="official", retry=Retry(sleep=lambda seconds: None))
    with pytest.raises(UserError, match="1 are not .judge: unreadable reply.; run"):
        wise.score(items, predictions, tmp_path)
    judge.by_prompt, judge.asked = {}, []
    scored = wise.score(items, predictions, tmp_path)
    assert [prompt for prompt, _ in judge.asked] == [FIRST_PROMPT]
    assert figures(scored)["wiscore"] == pytest.approx(1)


def test_a_judge_that_never_answers_leaves_every_picture_unscored(six, tmp_path):
    items, predictions = six
    with judge_server(Answer(500)) as server:
        judge = OpenAIJudge("m", server.url)
        wise = WISE(judge=judge, retry=Retry(sleep=lambda seconds: None))
        scored = wise.score(items, predictions, tmp_path)
    assert set(scored.unscored.values()) == {"judge: HTTP 500"}
    assert len(scored.unscored) == 7
    assert scored.metrics == []
    assert scored.details["wiscore_with_unscored_as_0"] == 0
    with judge_server(Answer()) as server:
        again = WISE(judge=OpenAIJudge("m", server.url)).score(items, predictions, tmp_path)
        assert len(server.requests) == 7
        assert {"explanation 1" in text_of(body) for body in server.requests} == {True, False}
    assert again.unscored == {} and figures(again)["wiscore"] == pytest.approx(0.85)


def test_other_prompts_are_said_to_be_others(tmp_path):
    source = write_lists(tmp_path / "data", SIX, row1=row(1, Prompt="a three-sided shape"))
    items = WISE().load(source).items
    predictions = drawn(items, tmp_path / "drawn")
    scored = WISE(judge=FixedJudge({})).score(items, predictions, tmp_path)
    assert scored.details["prompts"] == "not WISE's prompts"
    assert "not comparable" in scored.warnings[-1]


def test_a_full_set_is_recognised_by_its_content(tmp_path):
    items = WISE().load(write_lists(tmp_path, range(1, 1001))).items
    scored = WISE(judge=FixedJudge({})).score(items, {}, tmp_path)
    assert scored.details["prompts"] == "legacy WISE with changed prompts"


def test_a_judge_is_needed_early(six, tmp_path):
    with pytest.raises(UserError, match="pass --judge hf:ID"):
        WISE().prepare()
    WISE(judge=FixedJudge({})).prepare()
    with pytest.raises(UserError, match="lmms_eval, official, torchumm, lenient"):
        WISE(parser="strict")
