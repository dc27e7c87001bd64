"""Rows that are left out are named, with what was wrong with the first and what mends it."""

import math
import re
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from tests.data.files import BLUE, RED, png, write, write_json, write_jsonl, write_tar
from unigame.data import VQA, Captions, HFData, WebDataset, build_dataset
from unigame.data.preview import write_sheet
from unigame.errors import UserError
from unigame.training.skip_report import UnreadablePictures, report_skips

ASKED = {"image": "a.png", "question": "Which?", "answer": "red"}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_path_that_was_tried_and_the_option_are_said(tmp_path):
    rows = [{**ASKED, "image": f"{n}.png"} for n in range(3)]
    path = write_json(tmp_path / "t.json", rows)
    with pytest.raises(UserError) as caught:
        build_dataset([{"type": "vqa", "path": str(path)}])
    said = str(caught.value)
    assert f"3 missing image (0, 1, ...), first: no file '{tmp_path}/0.png'" in said
    assert f"nor in '{tmp_path}/images'); check the image folder" in said
    assert "unigame data --images FOLDER" in said and "--data.0.images FOLDER" in said
    write(tmp_path / "pictures/2.png", png())
    data = build_dataset([{"type": "vqa", "path": str(path), "images": f"{tmp_path}/pictures"}])
    for share, fix in ((0.5, r"image folder \(--eval_data\.0\.images FOLDER\)"), (0.7, None)):
        if fix is None:
            report_skips(data, "eval_data", share)
        else:
            with pytest.raises(UserError, match=fix):
                report_skips(data, "eval_data", share)


def test_only_missing_pictures_are_the_image_folders_fault(tmp_path):
    write(tmp_path / "a.png", b"<html>")
    write(tmp_path / "a.txt", "red")
    path = write_json(tmp_path / "t.json", [ASKED])
    mute = write_tar(tmp_path / "s.tar", {"a.png": png()})
    for make, said in (
        (lambda: VQA(path, verify="decode"), "no kind of picture.*download them again"),
        (lambda: HFData(write_jsonl(tmp_path / "n.jsonl", [{**ASKED, "answer": ""}])), "columns"),
        (lambda: WebDataset(mute), r"1 no text \(s.tar/a\), first: members: png.*columns"),
        (lambda: WebDataset(write_tar(tmp_path / "e.tar", {"a.txt": "x"})), "members: txt"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            make()
        named = "missing image" in str(caught.value)
        assert ("check the image folder" in str(caught.value)) == named
        assert "images: FOLDER" not in str(caught.value)


@pytest.mark.parametrize("kind", ["vqa", "hf", "captions", "webdataset"])
@pytest.mark.parametrize("mark", ["<image>", "<image_placeholder>"])
def test_a_mark_in_a_plain_table_leaves_its_row_out(tmp_path, kind, mark):
    write(tmp_path / "a.png", png())
    rows = [ASKED, {**ASKED, "question": f"{mark}\nWhich?"}, {**ASKED, "answer": f"red {mark}"}]
    if kind == "captions":
        rows = [{"image": "a.png", "caption": text} for text in ("red", f"{mark} a", f"b{mark}")]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    if kind == "webdataset":
        members = {f"{n}.json": Path(path).read_text().splitlines()[n] for n in range(3)}
        pictures = {f"{n}.png": png() for n in range(3)}
        path = write_tar(tmp_path / "t.tar", dict(sorted({**members, **pictures}.items())))
    data = build_dataset([{"type": kind, "path": str(path)}])
    assert len(data) == 1 and mark not in f"{data[0]['question']} {data[0]['caption']}"
    assert data.skips.counts() == {f"text with the mark {mark}": 2}
    assert re.search(r"first: .*'.*Which\?'; write|first: .*caption is", data.skips.summary())


def test_a_table_that_datasets_keeps_leaves_marks_out_too(tmp_path):
    rows = [{**ASKED, "image": {"bytes": png(), "path": None}, "question": q} for q in "ab"]
    rows[0]["question"] = "<image>a"
    Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    data = HFData(tmp_path / "t.parquet")
    assert [row["question"] for row in data] == ["b"] and len(data.skips.skipped) == 1


@pytest.mark.parametrize("verify", ["exists", "decode"])
def test_a_picture_that_may_not_be_read_is_named_at_opening(tmp_path, monkeypatch, verify):
    """It ended the run at its batch. Root may read any file, so the answers are put in."""
    closed = str(write(tmp_path / "a.png", png()))
    write(tmp_path / "b.png", png())
    reads = Path.read_bytes

    def read_bytes(path):
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return reads(path)

    path = write_jsonl(tmp_path / "t.jsonl", [{**ASKED, "image": "b.png"}, ASKED])
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != closed)
    with pytest.raises(UserError, match=r"picture '.*a\.png' may not be read.*chmod"):
        VQA(path, verify=verify)
    assert len(VQA(path, verify=verify, limit=1)) == 1
    assert len(VQA(path, verify="none")) == 2


def test_damaged_pictures_of_a_sheet_are_told(tmp_path):
    for name, content in (("a", png(RED)), ("b", png(BLUE)[:40]), ("c", b"<html>")):
        write(tmp_path / f"{name}.png", content)
        write(tmp_path / f"{name}.txt", name)
    sheet = write_sheet(Captions(tmp_path), tmp_path / "sheet.png")
    assert sheet.pictures == 1 and [row.id for row in sheet.unread] == ["b", "c"]
    assert sheet.unread[1].detail == "no kind of picture that Pillow knows"


def test_the_end_of_a_run_names_two_of_them_and_what_finds_all(capsys):
    count = UnreadablePictures(max_share=1)
    for number in range(3):
        count.count("data", read=4, unreadable=1, named=[f"{number}: corrupt image (cut)"])
    count.count("eval_data", read=1, unreadable=1)
    count.on_train_end()
    said = capsys.readouterr().err
    assert "3 of 15 rows could not be read" in said
    assert "0: corrupt image (cut); 1: corrupt image (cut)" in said and "2: corrupt" not in said
    assert "--data.0.verify decode" in said
    count.on_evaluate()
    assert "eval_data: the pictures of 1 of 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": ["red", "pink"]}, r"a list, .*columns: \{answers: answer\}"),
        ({"question": ["Which?"]}, r"a list, but must be text \(write one text\)"),
        ({"answer": {"text": "red"}}, "an object, but must be text"),
        ({"answer": 3}, "answer is 3, but must be text .put it in quotes"),
        ({"answer": math.nan}, "has an empty answer; fill it in, or drop the row"),
        ({"image": math.nan}, "image is nan, an empty cell; write the path"),
        ({"image": None}, "image is None, an empty cell; write the path"),
        ({"image": 3}, r"image is 3, but must be the path .*columns: \{image: <column>\}"),
        ({"image": ["a.png", "b.png"]}, r"image is \[.*a list of 2, .*its path alone, .*type: hf"),
        ({"answers": ["red", 2.5]}, r"answers is \['red', 2.5\], .*answer is float; put it in qu"),
        ({"answers": ["red", None]}, "an answer is empty; leave it out of the list"),
        ({"answers": [{"text": "red"}]}, 'an answer has no key "answer"'),
        ({"answers": 3}, "answers is 3, but must be a list .*it is int; write a list"),
    ],
)
def test_what_is_no_text_is_said_with_its_own_fix(tmp_path, row, said):
    write(tmp_path / "a.png", png())
    path = write_jsonl(tmp_path / "t.jsonl", [{**ASKED, **row}])
    with pytest.raises(UserError, match=said):
        VQA(path)
    if isinstance(row.get("answer"), list):
        assert VQA(path, columns={"answers": "answer"})[0]["answer"] == "red"


def test_several_pictures_are_read_where_the_message_says(tmp_path):
    write(tmp_path / "a.png", png())
    path = write_jsonl(tmp_path / "t.jsonl", [{**ASKED, "image": ["a.png", "a.png"]}])
    with pytest.raises(UserError, match="type: hf, which takes lists"):
        VQA(path)
    assert len(HFData(path)[0]["images"]) == 2


@pytest.mark.parametrize("kind", [VQA, HFData])
def test_whole_numbers_among_the_answers_are_their_text(tmp_path, kind):
    write(tmp_path / "a.png", png())
    row = {"image": "a.png", "question": "How many?", "answers": [2, 2, 3]}
    (record,) = kind(write_jsonl(tmp_path / "t.jsonl", [row]))
    assert record["answer"] == "2" and record["answers"] == ["2", "2", "3"]
    (tmp_path / "t.csv").write_text('image,question,answers\na.png,How many?,"[2, 2, 3]"\n')
    assert kind(tmp_path / "t.csv")[0]["answers"] == ["2", "2", "3"]


def test_a_text_stays_one_beside_rows_that_hold_a_list(tmp_path):
    """`datasets` gives such a column as json, and "007" became the number 7."""
    rows = [{**ASKED, "answers": ["red", "pink"]}, {**ASKED, "answers": "007"}]
    for row in rows:
        del row["answer"]
    write(tmp_path / "a.png", png())
    data = HFData(write_jsonl(tmp_path / "t.jsonl", rows))
    assert [record["answers"] for record in data] == [["red", "pink"], ["007"]]


def test_the_column_that_is_missing_is_named_as_it_may_be(tmp_path):
    """Beside a question it said: name a caption; and it left the one free column out."""
    write(tmp_path / "a.png", png())
    row = {"image": "a.png", "question": "Which?", "someans": "red"}
    path = write_jsonl(tmp_path / "t.jsonl", [row])
    for kind in (VQA, HFData):
        with pytest.raises(UserError) as caught:
            kind(path)
        assert "(it has image, question, someans)" in str(caught.value)
        assert "name it with columns: {answer: someans}" in str(caught.value)
        assert kind(path, columns={"answer": "someans"})[0]["answer"] == "red"
    path = write_jsonl(tmp_path / "u.jsonl", [{**row, "other": 1}])
    with pytest.raises(UserError, match="columns: {answer: <column>}"):
        VQA(path)


def test_a_row_that_is_left_out_is_named_once(tmp_path):
    """It was named by its id, and again by the file and its number."""
    rows = [{"image": "none.png", "question": "Which?", "answer": None}, ASKED]
    rows += [{**ASKED, "image": "none.png", "answer": "<image>"}]
    write(tmp_path / "a.png", png())
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    said = HFData(path).skips.summary()
    assert "1 no text (0), first: the question 'Which?' has no answer;" in said
    assert "1 text with the mark <image> (2), first: the answer is '<image>'" in said
    assert "row " not in said and str(path) not in said


def test_an_empty_cell_of_pandas_is_one(tmp_path):
    """It said: put nan in quotes."""
    rows = [{**ASKED, "image": {"bytes": png(), "path": None}, "answer": math.nan}]
    Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="the question 'Which.' has no answer"):
        HFData(tmp_path / "t.parquet")


def test_a_tsv_is_read_and_other_kinds_of_file_are_told_what_is(tmp_path):
    write(tmp_path / "a.png", png())
    text = "image\tquestion\tanswer\na.png\tWhich?\tNA\n"
    for name in ("t.tsv", "t.tar", "t.xlsx"):
        (tmp_path / name).write_text(text)
    assert HFData(tmp_path / "t.tsv")[0]["answer"] == "NA"
    assert HFData(tmp_path / "*.tsv")[0]["answer"] == "NA"
    for name in ("t.tar", "t.xlsx"):
        with pytest.raises(UserError, match=r"\.csv, \.tsv, or shards \(\.tar\) with type: web"):
            HFData(tmp_path / name)
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(UserError, match=r"kinds \.json, \.tsv; name those of one kind"):
        HFData(tmp_path / "t.[jt]s*")


def test_a_column_of_numbers_is_cast(tmp_path):
    rows = [{**ASKED, "image": {"bytes": png(), "path": None}, "answer": 3}]
    Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="answer is 3, but must be text .cast the column to text"):
        HFData(tmp_path / "t.parquet")
