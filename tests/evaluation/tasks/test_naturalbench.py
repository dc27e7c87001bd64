"""NaturalBench from both layouts to its four accuracies; groups stay whole."""

from __future__ import annotations

import datasets
import pytest

from tests.data.files import BLUE, RED, color_of, png, write_jsonl
from tests.evaluation.tables import write_parquet
from unigame.errors import UserError
from unigame.evaluation.base import DataSource, Prediction
from unigame.evaluation.tasks.naturalbench.rules import CELLS, extract
from unigame.evaluation.tasks.naturalbench.task import NaturalBench
from unigame.reports.metrics import estimate, value_of

RIGHT = dict(zip(CELLS, ("Yes", "No", "No", "Yes"), strict=True))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def cell(color=RED):
    return {"bytes": png(color), "path": None}


def group(index, kind="yes_no", **changes):
    """One row of ``BaiqiL/NaturalBench``."""
    yes, no = ("Yes", "No") if kind == "yes_no" else ("A", "B")
    return {
        "Index": index,
        "Image_0": cell(RED),
        "Image_1": cell(BLUE),
        "Question_0": "Is it red?",
        "Image_0_Question_0": yes,
        "Image_1_Question_0": no,
        "Question_1": "Is it blue?",
        "Image_0_Question_1": no,
        "Image_1_Question_1": yes,
        "Question_Type": kind,
        "Source": "DOCCI",
        **changes,
    }


def flat(indices, kind="yes_no"):
    """Rows of ``BaiqiL/NaturalBench-lmms-eval``."""
    return [
        {
            "Index": index,
            "Image": cell(BLUE if index % 2 else RED),
            "Question": "Is it blue?" if index % 4 > 1 else "Is it red?",
            "Question_Type": kind,
        }
        for index in indices
    ]


def load(root, rows, limit=None, name="train-00000-of-00001.parquet", **variants):
    write_parquet(root / name, rows)
    return NaturalBench(**variants).load(DataSource(root=root), limit)


def score(loaded, reply):
    said = {item.id: reply(item) for item in loaded.items}
    predictions = {id: Prediction(id, text) for id, text in said.items() if text is not None}
    return NaturalBench().score(loaded.items, predictions, None)


def figures(scored):
    return {metric.name: value_of(metric) for metric in scored.metrics}


def right(item):
    said = RIGHT[item.reference["cell"]]
    if item.reference["question_type"] == "yes_no":
        return said
    return "A" if said == "Yes" else "B"


# ---- from disk to scores -------------------------------------------------------------------------


def test_one_row_a_group_to_scores(tmp_path):
    loaded = load(tmp_path, [group(0), group(1, "multiple_choice"), group(2)])
    assert [item.id for item in loaded.items[:5]] == [
        *("0/q0i0", "0/q0i1", "0/q1i0", "0/q1i1"),
        "1/q0i0",
    ]
    assert [item.prompt for item in loaded.items[1:3]] == [
        "Is it red? Please answer Yes or No.",
        "Is it blue? Please answer Yes or No.",
    ]
    assert loaded.items[4].prompt == (
        "Is it red? Please output the letter corresponding to the correct option."
    )
    shown = [color_of(item.pictures[0]()) for item in loaded.items[:4]]
    assert shown == ["red", "blue", "red", "blue"]
    assert loaded.dataset.split == "train" and loaded.skips.kept == 12

    scored = score(loaded, lambda item: "no" if item.id == "2/q1i1" else right(item))
    assert scored.metrics[0].name == "g_acc"
    assert figures(scored) == pytest.approx(
        {"g_acc": 200 / 3, "q_acc": 500 / 6, "i_acc": 500 / 6, "acc": 1100 / 12}
    )
    assert scored.details["question_types"] == {
        "yes_no": {"g_acc": 0.5, "groups": 2},
        "multiple_choice": {"g_acc": 1.0, "groups": 1},
    }
    ids = {metric.name: [unit.id for unit in metric.units][:4] for metric in scored.metrics}
    assert ids["q_acc"] == ["0/q0", "0/q1", "1/q0", "1/q1"]
    assert ids["i_acc"] == ["0/i0", "0/i1", "1/i0", "1/i1"]
    assert all(unit.cluster == unit.id[0] for m in scored.metrics for unit in m.units)
    # Groups are what is resampled: three of them, all right or with one question wrong.
    assert estimate(scored.metrics[1])["low"] == 50 and estimate(scored.metrics[1])["n"] == 6


def test_always_yes_and_no_reply(tmp_path):
    loaded = load(tmp_path, [group(0), group(1)])
    scored = score(loaded, lambda item: "Yes." if item.cluster == "0" else "maybe")
    assert figures(scored) == {"g_acc": 0, "q_acc": 0, "i_acc": 0, "acc": 25}
    assert scored.unparsed == [f"1/{cell}" for cell in CELLS]


@pytest.mark.parametrize(
    ("wrong", "q_acc", "i_acc"),
    [(("q0i0", "q0i1"), 50, 0), (("q0i0", "q1i0"), 0, 50), (("q0i0", "q1i1"), 0, 0)],
)
def test_questions_and_pictures_are_counted_separately(tmp_path, wrong, q_acc, i_acc):
    loaded = load(tmp_path, [group(0)])
    found = figures(score(loaded, lambda i: "" if i.reference["cell"] in wrong else right(i)))
    assert found == {"g_acc": 0, "q_acc": q_acc, "i_acc": i_acc, "acc": 50}


def test_four_rows_a_group_in_any_order(tmp_path):
    rows = flat([3, 0, 2, 1, *range(4, 8)])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", rows)
    loaded = NaturalBench().load(DataSource(root=tmp_path, split="test"))
    wide = load(tmp_path / "wide", [group(0), group(1)])
    assert [(i.id, i.prompt) for i in loaded.items] == [(i.id, i.prompt) for i in wide.items]
    assert loaded.dataset.fingerprint == wide.dataset.fingerprint
    assert [color_of(i.pictures[0]()) for i in loaded.items[:4]] == ["red", "blue", "red", "blue"]
    assert figures(score(loaded, right)) == dict.fromkeys(("g_acc", "q_acc", "i_acc", "acc"), 100)


def test_limit_is_rounded_up_to_groups(tmp_path):
    loaded = load(tmp_path, [group(0), group(1), group(2)], limit=5)
    assert len(loaded.items) == 8 and {item.cluster for item in loaded.items} == {"0", "1"}


def test_a_group_without_all_replies_is_left_out(tmp_path):
    loaded = load(tmp_path, [group(0), group(1)])
    scored = score(loaded, lambda item: None if item.id == "0/q1i0" else right(item))
    assert [unit.id for unit in scored.metrics[0].units] == ["1"]
    assert scored.unscored == dict.fromkeys(
        ["0/q0i0", "0/q0i1", "0/q1i1"], "another item of its group has no reply"
    )


def test_prompt_variants(tmp_path):
    for variant, ending in (("official", "red?Please answer Yes or No."), ("bare", "red?")):
        [first, *_] = load(tmp_path, [group(0)], prompt=variant).items
        assert first.prompt == f"Is it {ending}"


@pytest.mark.parametrize(
    ("reply", "kind", "label"),
    [
        ("This is a B", "multiple_choice", 1),
        ("The answer is B, not A", "multiple_choice", 0),
        ("There is no dog, so yes", "yes_no", 0),
        ("YES!", "yes_no", 1),
        ("no_one", "yes_no", -1),
        ("know, nobody", "yes_no", -1),
        ("yes", "multiple_choice", -1),
        ("", "yes_no", -1),
    ],
)
def test_labels(reply, kind, label):
    assert extract(reply, kind) == label


# ---- bad rows ------------------------------------------------------------------------------------


def test_bad_groups_are_counted_by_reason(tmp_path):
    root = tmp_path / "nb"
    rows = [
        group(0),
        group(1, Image_0_Question_0="No", Image_1_Question_0="Yes"),
        group(2, Question_1=None),
        group(3, Question_Type="essay"),
        group(4, Image_1=None),
        group(5, Image_1=3.5),
        group(6, Image_0_Question_1=0),
        group("x"),
        group(0, Question_0="Another?"),
        group(7, Question_Type=None),
    ]
    for row in rows:
        for name in ("Image_0", "Image_1"):
            row[name] = "a.png" if isinstance(row[name], dict) else row[name]
    old = group(8, **{"Question Type": "yes_no", "Image_0": "a.png", "Image_1": "a.png"})
    del old["Question_Type"]
    write_jsonl(root / "train.jsonl", [*rows, old, "text"])
    (root / "a.png").write_bytes(png())
    loaded = NaturalBench().load(DataSource(root=root))
    assert [item.cluster for item in loaded.items] == ["0"] * 4 + ["8"] * 4
    assert loaded.items[0].prompt.startswith("Is it red?")
    assert loaded.skips.counts() == {
        "answers do not follow the pattern yes, no, no, yes": 1,
        "missing column Question_1": 1,
        "Question_Type is neither yes_no nor multiple_choice": 1,
        "missing image": 1,
        "Image_1 is float, expected a picture": 1,
        "Image_0_Question_1 is int, expected str": 1,
        "Index is str, expected int": 1,
        "duplicate Index": 1,
        "missing column Question_Type": 1,
        "row is not an object": 1,
    }


def test_bad_flat_groups_are_left_out_whole(tmp_path):
    rows = flat(range(20))
    rows[5]["Question"] = "Is it green?"  # of group 1
    rows[8]["Image"] = None  # group 2
    rows[0]["Answer"] = None
    rows[12]["Answer"] = rows[13]["Answer"] = rows[14]["Answer"] = rows[15]["Answer"] = "Yes"
    del rows[19]
    loaded = load(tmp_path, rows)
    assert {item.cluster for item in loaded.items} == {"0"}
    assert loaded.skips.counts() == {
        "group is not two questions on two pictures": 4,
        "missing image": 4,
        "answers do not follow the pattern yes, no, no, yes": 4,
        "group of fewer than four rows": 3,
    }


def test_another_layout_is_named(tmp_path):
    with pytest.raises(UserError, match="neither layout of NaturalBench.*Index, text;"):
        load(tmp_path, [{"Index": 0, "text": "?"}])
    with pytest.raises(UserError, match="no column 'Index'"):
        load(tmp_path, [{"id": 0, "text": "?"}])


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no usable group.*1 missing image"):
        load(tmp_path, [group(0, Image_0=None)])
