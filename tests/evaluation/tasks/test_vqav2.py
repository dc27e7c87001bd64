"""VQAv2 and AdVQA from files in their own layouts to scores; bad rows, files and splits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluation.fakes import FakeBackbone
from tests.evaluation.tables import jpeg, write_parquet
from unigame.data import CorruptImage
from unigame.data.hf import HFData
from unigame.errors import UserError
from unigame.evaluation.base import DataSource, Prediction
from unigame.evaluation.run import evaluate
from unigame.evaluation.tasks.advqa.task import AdVQA
from unigame.evaluation.tasks.vqav2.task import VQAv2
from unigame.reports.metrics import estimate, value_of


def answers(*texts):
    """Ten annotations; the last text fills up."""
    ten = [*texts, *[texts[-1]] * (10 - len(texts))]
    return [
        {"answer": text, "answer_confidence": "yes", "answer_id": i + 1}
        for i, text in enumerate(ten)
    ]


def row(id, **changes):
    return {
        "question_id": id,
        "image_id": id // 10,
        "question": "How many dogs?",
        "answer_type": "number",
        "answers": answers("2", "2", "two", "3"),
        "image": {"bytes": jpeg(), "path": None},
        **changes,
    }


def said(loaded, *texts):
    pairs = zip(loaded.items, texts, strict=True)
    return {item.id: Prediction(item.id, text) for item, text in pairs}


def test_parquet_to_scores(tmp_path):
    rows = [
        row(420),
        row(421, question="Is it a dog?", answer_type="yes/no", answers=answers("yes")),
        row(430, answers=answers("red", "blue"), answer_type="other"),
        row(431, answers=None),
        row(432, image=None),
        row(420, question="Again?"),
        row(440, image={"bytes": b"no picture", "path": None}),
    ]
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", rows)
    benchmark = VQAv2()
    loaded = benchmark.load(DataSource(root=tmp_path))
    assert [item.id for item in loaded.items] == ["420", "421", "430", "440"]
    assert loaded.skips.counts() == {
        "missing column answers": 1,
        "missing image": 1,
        "question_id occurs twice": 1,
    }
    assert loaded.dataset.split == "validation" and len(loaded.dataset.fingerprint) == 64
    assert loaded.items[0].prompt == (
        "How many dogs?\nAnswer the question using a single word or phrase."
    )
    assert loaded.items[0].pictures[0]().size == (16, 12)
    with pytest.raises(CorruptImage):
        loaded.items[3].pictures[0]()

    replies = said(loaded, "Two.", "Yes!", "blue", "")
    replies["440"] = Prediction("440", error="corrupt image")
    scored = benchmark.score(loaded.items, replies, tmp_path)
    figures = {metric.name: value_of(metric) for metric in scored.metrics}
    assert figures == pytest.approx(
        {
            "accuracy": 100 * (0.9 + 1 + 1) / 3,
            "accuracy_number": 90.0,
            "accuracy_other": 100.0,
            "accuracy_yes_no": 100.0,
        }
    )
    assert scored.metrics[0].name == "accuracy"
    assert [unit.cluster for unit in scored.metrics[0].units] == ["42", "42", "43"]
    interval = estimate(scored.metrics[0])
    assert interval["low"] <= figures["accuracy"] <= interval["high"]
    assert interval["n"] == 3


@pytest.mark.parametrize(
    ("parser", "reply", "score"),
    [
        ("lmms_eval", "Red!", 1.0),
        ("official", "Red!", 0.0),
        ("textvqa", "Red!", 1.0),
        ("textvqa", "The answer is: red. It is.", 0.0),
        ("torchumm_unigame", "The answer is: red. It is.", 1.0),
    ],
)
def test_parsers(parser, reply, score):
    assert VQAv2(parser=parser).score_reply(reply, ["red"] * 10) == score


def test_prompts():
    assert VQAv2(prompt="bare").prompt_for("Why? ") == "Why? "
    with pytest.raises(UserError, match=r"vqav2 has no prompt variant 'x'; choose from lmms_eval"):
        VQAv2(prompt="x")


def test_limit_and_wrong_types(tmp_path):
    rows = [
        {"question_id": 1, "question": 7, "answers": ["a"], "image": "1.jpg"},
        {"question_id": 2, "question": "?", "answers": True, "image": "1.jpg"},
        {"question_id": 3, "question": "?", "answers": [], "image": "1.jpg"},
        {"question_id": 4, "question": "?", "answers": ["a", 2.5], "image": "1.jpg"},
        {"question_id": 5, "question": "?", "answers": ["a"], "image": 7},
        {"question_id": "6", "question": "?", "answers": ["a", "b"], "image": "1.jpg"},
        {"question_id": 7, "question": "?", "answers": {"answer": ["c"]}, "image": "2.jpg"},
        {"question_id": 8, "question": "?", "answers": ["a"], "image": "1.jpg"},
    ]
    (tmp_path / "validation.json").write_text(json.dumps(rows))
    Image.new("RGB", (4, 4)).save(tmp_path / "1.jpg")
    loaded = VQAv2().load(DataSource(root=tmp_path), limit=2)
    assert [item.id for item in loaded.items] == ["6", "7"]
    assert loaded.items[0].reference["answers"] == ["a", "b"]
    assert loaded.items[1].reference["answers"] == ["c"]
    assert list(loaded.skips.counts()) == [
        "question is int, expected str",
        "answers: it is bool",
        "no answers",
        "answers: an answer is float",
        "image is int, expected a picture",
    ]
    said = loaded.skips.details["answers: an answer is float"]
    assert said == "answers is ['a', 2.5]; put it in quotes"
    assert loaded.items[0].pictures[0]().size == (4, 4)
    with pytest.raises(CorruptImage, match="missing image"):
        loaded.items[1].pictures[0]()


def test_another_layout(tmp_path):
    rows = [{"multiple_choice_answer": "a", "text": "?", "image": "x.jpg"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"no column 'question'.*multiple_choice_answer"):
        VQAv2().load(DataSource(root=tmp_path))


def test_a_table_of_ones_own_is_told_what_it_needs(tmp_path):
    """It was told of another layout, of the challenge server, or nothing at all."""
    Image.new("RGB", (4, 4)).save(tmp_path / "1.jpg")
    table = tmp_path / "rows.json"
    asked = {"question_id": 1, "image_id": 1, "image": "1.jpg", "question": "?"}
    trained = {"image": "1.jpg", "question": "?", "answer": "a"}
    table.write_text(json.dumps([{"image": "1.jpg", "prompt": "?"}]))
    with pytest.raises(UserError, match=r"'question'.*answers \(ten times\).*tutorial\.md, step 4"):
        VQAv2().load(DataSource(root=tmp_path))
    table.write_text(json.dumps([trained]))
    with pytest.raises(UserError, match="write a sure answer ten times"):
        VQAv2().load(DataSource(root=tmp_path))
    table.write_text(json.dumps([{**asked, "answer": "a"}]))
    with pytest.raises(UserError, match="has 'answer', VQAv2 wants the list 'answers'"):
        VQAv2().load(DataSource(root=tmp_path))
    table.write_text(json.dumps([{**asked, "answers": ["a"] * 10}] * 12))
    loaded = VQAv2().load(DataSource(root=tmp_path))
    assert len(loaded.items) == 1
    assert loaded.skips.counts() == {"question_id occurs twice": 11}
    with pytest.raises(UserError, match="no column 'question_id'"):  # the server needs it
        table.write_text(json.dumps([trained]))
        VQAv2(parser="submission").load(DataSource(root=tmp_path))


def own_tables(folder):
    """The same three rows in every kind of table: answers as a list, and one answer as a text."""
    rows = [
        {"image": "1.png", "question": "How many?", "answers": ["2"] * 9 + ["two"]},
        {"image": "2.png", "question": "Why, oh why?", "answers": ["a, b"] * 10},
        {"image": "2.png", "question": "Which?", "answers": ["2"]},
    ]
    cells = [{**row, "answers": json.dumps(row["answers"])} for row in rows]
    cells[2]["answers"] = "2"
    names = ("image", "question", "answers")
    for suffix, mark in (("csv", ","), ("tsv", "\t")):
        lines = [
            mark.join('"' + str(row[name]).replace('"', '""') + '"' for name in names)
            for row in cells
        ]
        (folder / suffix).mkdir()
        text = "\n".join([mark.join(names), *lines])
        (folder / suffix / f"rows.{suffix}").write_text(text)
    rows[2]["answers"] = "2"
    (folder / "jsonl").mkdir()
    (folder / "jsonl" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "json").mkdir()
    (folder / "json" / "rows.json").write_text(json.dumps(rows))
    write_parquet(folder / "parquet" / "rows.parquet", cells)
    for name in ("csv", "tsv", "jsonl", "json", "parquet"):
        for picture in ("1.png", "2.png"):
            Image.new("RGB", (8, 8)).save(folder / name / picture)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_what_training_reads_evaluation_reads_too(kind, tmp_path):
    """A csv and one text as ``answers`` were refused, and so was a table without question_id."""
    own_tables(tmp_path)
    trained = HFData(tmp_path / kind / f"rows.{kind}")
    loaded = VQAv2(prompt="bare").load(DataSource(root=tmp_path / kind))
    assert [(item.prompt, item.reference["answers"]) for item in loaded.items] == [
        (record["question"], record["answers"]) for record in trained
    ]
    assert [item.reference["answers"][0] for item in loaded.items] == ["2", "a, b", "2"]
    assert [item.id for item in loaded.items] == ["0", "1", "2"]
    assert [item.cluster for item in loaded.items] == ["1.png", "2.png", "2.png"]
    assert all(item.pictures[0]().size == (8, 8) for item in loaded.items)


def test_a_picture_is_found_under_the_names_that_training_knows(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    line = {"file_name": "1.png", "image_id": 0, "question": "?", "answers": ["a"] * 10}
    (tmp_path / "rows.jsonl").write_text(json.dumps(line))
    (item,) = VQAv2().load(DataSource(root=tmp_path)).items
    assert item.pictures[0]().size == (4, 4) and item.cluster == "0"
    for cell in (None, "", math.nan):  # no id: the file is the picture's name
        (tmp_path / "rows.jsonl").write_text(json.dumps({**line, "image_id": cell}))
        assert VQAv2().load(DataSource(root=tmp_path)).items[0].cluster == "1.png"


def test_answers_that_are_whole_numbers_are_their_text(tmp_path):
    """They were left out, and the figure was of the other questions alone."""
    rows = [row(1, answers=["yes"] * 10), row(2, answers=[2] * 10)]
    rows += [row(3, answers=[{"answer": 2, "answer_id": n} for n in range(10)])]
    rows += [row(4, answers="[2, 2, 2, 2]")]
    for each in rows:
        each["image"] = "1.jpg"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    loaded = VQAv2().load(DataSource(root=tmp_path))
    assert [item.reference["answers"][0] for item in loaded.items] == ["yes", "2", "2", "2"]
    assert not loaded.skips.skipped
    scored = VQAv2().score(loaded.items, said(loaded, "yes", "2", "two", "3"), tmp_path)
    assert value_of(scored.metrics[0]) == pytest.approx(75.0)


def test_no_usable_row(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([row(1, image=None), row(2, image=None)]))
    with pytest.raises(UserError, match="no usable row .*2 missing image"):
        VQAv2().load(DataSource(root=tmp_path))


def test_splits_without_answers_are_for_the_server(tmp_path):
    rows = [row(1, answers=None), row(2, answers=None)]
    write_parquet(tmp_path / "testdev-00000-of-00001.parquet", rows)
    source = DataSource(root=tmp_path, split="testdev")
    with pytest.raises(
        UserError, match=r"no answers for split 'testdev'.*--parser vqav2=submission"
    ):
        VQAv2().load(source)
    benchmark = VQAv2(parser="submission")
    loaded = benchmark.load(source)
    scored = benchmark.score(loaded.items, said(loaded, " two\n", "r\u00e4d"), tmp_path / "out")
    assert scored.metrics == []
    assert json.loads(Path(scored.details["submission"]).read_text(encoding="utf-8")) == [
        {"question_id": 1, "answer": "two"},
        {"question_id": 2, "answer": "r\u00e4d"},
    ]


def submitted(scored):
    rows = json.loads(Path(scored.details["submission"]).read_text(encoding="utf-8"))
    return {row["question_id"]: row["answer"] for row in rows}


def test_a_submission_has_a_line_for_every_question(tmp_path):
    """Also where the picture is missing or damaged, the question is none, or nothing was said."""
    rows = [
        row(1),
        row(2, image=None),
        row(3, image={"bytes": b"no picture", "path": None}),
        row(4, question=None),
        row(5),
    ]
    write_parquet(tmp_path / "testdev-00000-of-00001.parquet", rows)
    benchmark = VQAv2(parser="submission")
    loaded = benchmark.load(DataSource(root=tmp_path, split="testdev"))
    record = evaluate(
        FakeBackbone(),
        [benchmark],
        sources={"vqav2": DataSource(root=tmp_path, split="testdev")},
        output=tmp_path / "out",
    )
    entry = record["benchmarks"]["vqav2"]
    written = json.loads((tmp_path / "out" / "vqav2" / "submission.json").read_text())
    answers_by_id = {line["question_id"]: line["answer"] for line in written}
    assert list(answers_by_id) == [1, 2, 3, 4, 5]
    assert [id for id, answer in answers_by_id.items() if answer] == [1, 5]
    assert entry["counts"]["skipped"] == {"missing image": 2, "corrupt image": 1}
    assert any("3 of 5 questions have an empty answer" in line for line in entry["warnings"])
    scored = benchmark.score(loaded.items, {"1": Prediction("1", "two")}, tmp_path)
    assert submitted(scored) == {1: "two", 2: "", 3: "", 4: "", 5: ""}


def test_a_submission_keeps_an_id_that_is_no_number(tmp_path):
    write_parquet(tmp_path / "testdev.parquet", [row(1, question_id="q-1")])
    benchmark = VQAv2(parser="submission")
    items = benchmark.load(DataSource(root=tmp_path, split="testdev")).items
    assert submitted(benchmark.score(items, {"q-1": Prediction("q-1", "a")}, tmp_path)) == {
        "q-1": "a"
    }


def test_a_submission_without_any_picture_or_reply_is_none(tmp_path):
    write_parquet(tmp_path / "testdev.parquet", [row(1, image=None), row(2, image=None)])
    benchmark = VQAv2(parser="submission")
    with pytest.raises(UserError, match="no question has a picture"):
        benchmark.load(DataSource(root=tmp_path, split="testdev"))
    with pytest.raises(UserError, match="nothing to submit"):
        benchmark.score([], {}, tmp_path)


def test_too_few_annotators_are_said_before_and_after(tmp_path, caplog):
    """One answer a question is what people's own data have: the vote gives every reply 0 of it."""
    rows = [row(1, answers=answers("red")[:1]), row(2, answers=answers("red")[:4])]
    write_parquet(tmp_path / "validation.parquet", rows)
    benchmark = VQAv2()
    loaded = benchmark.load(DataSource(root=tmp_path))
    said = "1 of 2 questions have fewer than 4 answers"
    assert said in caplog.text and "to these 0 % at most" in caplog.text
    predictions = {item.id: Prediction(item.id, "red") for item in loaded.items}
    scored = benchmark.score(loaded.items, predictions, tmp_path)
    assert [unit.counts for unit in scored.metrics[0].units] == [(0.0,), (1.0,)]
    assert said in scored.warnings[0]
    assert benchmark.score(loaded.items[1:], predictions, tmp_path).warnings == []


# ---- VQA's own json ------------------------------------------------------------------------------


def write_json(root, split="val2017", edition="advqa_", ids=(10, 11, 20), answered=None):
    """AdVQA's or VQAv2's two files and a picture for every image id."""
    questions = [{"question_id": i, "image_id": i // 10, "question": f"Q{i}?"} for i in ids]
    annotations = [
        {"question_id": i, "image_id": i // 10, "answers": answers(f"a{i}"), "answer_type": "other"}
        for i in (ids if answered is None else answered)
    ]
    files = {
        f"v1_OpenEnded_mscoco_{split}_{edition}questions.json": {"questions": questions},
        f"v1_mscoco_{split}_{edition}annotations.json": {"annotations": annotations},
    }
    for name, content in files.items():
        (root / name).write_text(json.dumps(content))
    return questions, annotations, [root / name for name in files]


def write_picture(path, width=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, 8)).save(path)


@pytest.mark.parametrize(
    "name",
    [
        "val2014/COCO_val2014_000000000001.jpg",
        "images/val2014/COCO_val2014_000000000001.jpg",
        "val2017/000000000001.jpg",
        "1.png",
    ],
)
def test_pictures_by_any_of_cocos_names(tmp_path, name):
    write_json(tmp_path, ids=(10,))
    write_picture(tmp_path / name, width=9)
    loaded = AdVQA().load(DataSource(root=tmp_path))
    assert loaded.items[0].pictures[0]().width == 9


def test_json_to_scores(tmp_path):
    questions, _, (asked, _) = write_json(tmp_path, ids=(10, 11, 20, 30), answered=(10, 11, 20))
    asked.write_text(json.dumps({"questions": [*questions, "text", {"question_id": 40}]}))
    write_picture(tmp_path / "val2014" / "COCO_val2014_000000000001.jpg")
    benchmark = AdVQA()
    loaded = benchmark.load(DataSource(root=tmp_path))
    assert [item.id for item in loaded.items] == ["10", "11"]
    assert loaded.skips.counts() == {
        "no annotation for the question": 2,
        "missing image": 1,
        "question is not an object": 1,
    }
    assert loaded.dataset.id == tmp_path.name
    scored = benchmark.score(loaded.items, said(loaded, "a10", "no"), tmp_path)
    assert [metric.name for metric in scored.metrics] == ["accuracy"]  # one type of answer
    assert value_of(scored.metrics[0]) == 50.0
    assert scored.metrics[0].label == "AdVQA accuracy"


def test_the_split_chooses_the_files(tmp_path):
    write_json(tmp_path, ids=(10,))
    write_json(tmp_path, split="testdev2015", ids=(20,), answered=())[2][1].unlink()
    write_json(tmp_path, split="test2015", ids=(30,), answered=())[2][1].unlink()
    write_picture(tmp_path / "val2014" / "COCO_val2014_000000000001.jpg")
    write_picture(tmp_path / "test2015" / "COCO_test2015_000000000002.jpg")
    write_picture(tmp_path / "test2015" / "COCO_test2015_000000000003.jpg")
    assert AdVQA().load(DataSource(root=tmp_path)).items[0].id == "10"
    for split, id in (("testdev", "20"), ("test-dev", "20"), ("test", "30")):
        source = DataSource(root=tmp_path, split=split)
        assert AdVQA(parser="submission").load(source).items[0].id == id
        with pytest.raises(UserError, match=f"no answers for split '{split}'"):
            AdVQA().load(source)
    with pytest.raises(UserError, match="no file of split 'train', only .*val2017_advqa_questions"):
        AdVQA().load(DataSource(root=tmp_path, split="train"))


def test_files_that_do_not_fit(tmp_path):
    _, annotations, (asked, answered) = write_json(tmp_path, ids=(10, 20))
    write_picture(tmp_path / "000000000001.jpg")
    write_picture(tmp_path / "000000000002.jpg")
    annotations[0]["image_id"] = 2
    answered.write_text(json.dumps({"annotations": annotations}))
    loaded = AdVQA().load(DataSource(root=tmp_path))
    assert loaded.skips.counts() == {"question and annotation have different image_id": 1}

    answered.write_text(json.dumps({"annotations": [{**annotations[0], "question_id": 99}]}))
    with pytest.raises(UserError, match="no question of .* is annotated"):
        AdVQA().load(DataSource(root=tmp_path))
    answered.write_text(json.dumps(annotations))
    with pytest.raises(UserError, match='has no list "annotations"'):
        AdVQA().load(DataSource(root=tmp_path))
    answered.write_text("{")
    with pytest.raises(UserError, match=answered.name):
        AdVQA().load(DataSource(root=tmp_path))
    answered.unlink()
    with pytest.raises(UserError, match="no answers for split 'validation'"):
        AdVQA().load(DataSource(root=tmp_path))
    write_json(tmp_path, edition="other_")
    with pytest.raises(UserError, match="several files of split 'validation'"):
        AdVQA().load(DataSource(root=tmp_path))


def test_no_pictures_at_all(tmp_path):
    write_json(tmp_path)
    with pytest.raises(UserError, match="holds no pictures; put COCO's there"):
        AdVQA().load(DataSource(root=tmp_path))


def test_advqa_is_not_on_the_hub():
    with pytest.raises(UserError, match="no data set on the Hub"):
        AdVQA().load(DataSource())
