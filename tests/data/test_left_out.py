"""Rows that are left out are named, with what was wrong with the first and what mends it."""

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
    ],
)
def test_what_is_no_text_is_said_with_its_own_fix(tmp_path, row, said):
    write(tmp_path / "a.png", png())
    path = write_jsonl(tmp_path / "t.jsonl", [{**ASKED, **row}])
    with pytest.raises(UserError, match=said):
        VQA(path)
    if isinstance(row.get("answer"), list):
        assert VQA(path, columns={"answers": "answer"})[0]["answer"] == "red"


def test_a_column_of_numbers_is_cast(tmp_path):
    rows = [{**ASKED, "image": {"bytes": png(), "path": None}, "answer": 3}]
    Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="answer is 3, but must be text .cast the column to text"):
        HFData(tmp_path / "t.parquet")
