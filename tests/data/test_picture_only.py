"""Rows that hold nothing but a picture: a folder of them, and those of tables and conversations."""

import datasets
import pytest

from tests.data.files import jpeg, png, write, write_jsonl, write_tar
from unigame import cli
from unigame.data import PictureFolder, build_dataset
from unigame.data.guess import guess_source
from unigame.data.kinds import holds_pictures_alone
from unigame.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "data ü"
    write(data / "a.png", png())
    write(data / "deep" / "B.JPG", jpeg())
    write(data / "._a.png", "mac")
    write(data / "notes.md", "no picture")
    write(data / "broken.png", png()[:40])
    return data


def texts(data):
    return [[row[name] for name in ("question", "answer", "caption")] for row in data]


def test_a_folder_and_a_glob_of_pictures(folder, monkeypatch):
    data = PictureFolder(folder, verify="decode")
    assert [row["id"] for row in data] == ["a.png", "deep/B.JPG"]
    assert texts(data) == [[None] * 3] * 2 and data[0]["image"].size == (8, 6)
    assert list(data.skips.skipped) == ["broken.png"]
    assert len(PictureFolder(folder)) == 3 and len(PictureFolder(folder, limit=1)) == 1
    monkeypatch.chdir(folder.parent)
    assert [row["id"] for row in PictureFolder("data ü/a.*")] == ["data ü/a.png"]
    for wrong in (folder / "gone", folder / "*.bmp"):
        with pytest.raises(UserError, match="no folder and no file"):
            PictureFolder(wrong)
    with pytest.raises(UserError, match="no usable row"):
        PictureFolder(write(folder.parent / "texts/a.txt", "a").parent)


@pytest.mark.parametrize("kind", ["hf", "chat", "webdataset"])
def test_rows_without_text_are_kept_where_they_are_asked_for(folder, kind):
    if kind == "webdataset":
        path = write_tar(folder / "0.tar", {"a.png": png(), "b.png": png(), "b.txt": "red"})
    else:
        rows = [{"image": "a.png", "caption": None}, {"image": "deep/B.JPG", "caption": "red"}]
        path = write_jsonl(folder / "t.jsonl", rows)
    source = {"type": kind, "path": str(path)}
    plain, kept = build_dataset([source]), build_dataset([{**source, "picture_only": True}])
    assert texts(plain) == [[None, None, "red"]] and list(plain.skips.skipped.values()) == [
        "no text"
    ]
    assert texts(kept) == [[None] * 3, [None, None, "red"]] and not kept.skips.skipped
    assert holds_pictures_alone(kept) and not holds_pictures_alone(plain)


def test_they_are_found_by_a_path_alone(folder):
    table = write_jsonl(folder / "t.jsonl", [{"image": "a.png", "id": "x"}])
    source, said = guess_source(str(table))
    assert source["picture_only"] and "reca" in said
    assert texts(build_dataset([source])) == [[None] * 3]
    table.unlink()
    source, said = guess_source(str(folder))
    assert source == {"type": "pictures", "path": str(folder)} and "reca" in said


def test_the_data_command_shows_how_they_are_read(folder, tiny_path, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    assert cli.main(["data", "data ü", "--model", str(tiny_path), "--rows", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "type: pictures" in said and "3 of a picture alone" in said
    assert "a.png (reconstruction" in said and "trained: [the picture's tokens]" in said
    assert "<end_of_image>" in said and said.count("<begin_of_image>") == 2
