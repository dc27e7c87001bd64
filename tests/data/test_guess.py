"""A path alone: which source reads it, or one line that says why none does."""

import datasets
import pytest
from datasets import Dataset

from tests.data.files import png, write, write_json, write_jsonl, write_tar
from unigame.data import build_dataset
from unigame.data.guess import guess_source
from unigame.errors import UserError

ASKED = {"image": "a.png", "question": "Which?", "answer": "red"}
CAPTIONED = {"file_name": "a.png", "prompt": "a red square"}
CHAT = {"image": "a.png", "conversations": [{"from": "human", "value": "?"}]}
CHAT["conversations"].append({"from": "gpt", "value": "red"})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "data ü"
    write(data / "a.png", png())
    return data


@pytest.mark.parametrize(
    ("name", "row", "kind"),
    [
        ("t.json", CHAT, "chat"),
        ("t.jsonl", ASKED, "vqa"),
        ("t.jsonl", CAPTIONED, "captions"),
        ("t.jsonl", {"image": "a.png", "prompt": "Which?", "response": "red"}, "chat"),
        ("t.jsonl", {"images": ["a.png"], "caption": "a red square"}, "chat"),
        ("t.jsonl", {"image": "a.png", "prompt": "?", "chosen": "x", "rejected": "y"}, "chat"),
        ("t.jsonl", {"image": "a.png", "chosen": CHAT["conversations"], "rejected": []}, "chat"),
    ],
)
def test_a_table_by_its_columns(folder, name, row, kind):
    write = write_json if name.endswith(".json") else write_jsonl
    path = write(folder / name, [row] if name.endswith(".json") else [row])
    for given in (path, folder):  # the only table of a folder is meant
        source, said = guess_source(str(given))
        assert source["type"] == kind and str(path) in said
        assert len(build_dataset([source])) == 1


def test_csv_parquet_shards_and_pairs(folder):
    picture = {"bytes": png(), "path": None}
    table = Dataset.from_list([{"image": picture, "question": "Which?", "answer": "red"}])
    table.to_parquet(folder / "t.parquet")
    table.save_to_disk(folder.parent / "saved")
    write_tar(folder.parent / "shards/0.tar", {"a.png": png(), "a.txt": "a red square"})
    write(folder / "t.csv", "image,question,answers\n")
    write(folder / "c.csv", "image,caption\na.png,a red square\n")
    write(folder.parent / "pairs/a.png", png())
    write(folder.parent / "pairs/a.txt", "a red square")
    for path, kind in (
        (folder / "t.parquet", "hf"),
        (folder.parent / "saved", "hf"),
        (folder.parent / "shards", "webdataset"),
        (folder.parent / "shards/{0..0}.tar", "webdataset"),
        (folder / "c.csv", "captions"),
        (folder.parent / "pairs", "captions"),
    ):
        source = guess_source(str(path)).source
        assert source["type"] == kind, path
        assert len(build_dataset([source])) == 1
    assert guess_source("synthetic").source == {"type": "synthetic"}


def test_what_is_of_no_schema_is_one_line_with_its_name(folder):
    bare = write_jsonl(folder / "bare.jsonl", [{"image": "a.png", "label": "x"}])
    blind = write_jsonl(folder / "blind.jsonl", [{"question": "?", "answer": "x"}])
    empty = folder.parent / "empty"
    empty.mkdir()
    for given, named in (
        (bare, "image, label"),
        (blind, "no column of pictures"),
        (empty, "no table"),
        (folder / "gone.json", "gone.json"),
        ("a/b/c", "no data at 'a/b/c'"),
    ):
        with pytest.raises(UserError, match=named):
            guess_source(str(given))


def test_a_hub_id_is_asked_for_by_name(monkeypatch):
    asked = []

    def opened(path, split, **options):
        asked.append((path, options["hub"]))
        return [CHAT]

    monkeypatch.setattr("unigame.data.guess.open_rows", opened)
    assert guess_source("owner/name").source == {"type": "chat", "path": "owner/name", "hub": True}
    assert asked == [("owner/name", True)]
