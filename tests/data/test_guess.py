"""A path alone: which source reads it, or one line that says why none does."""

import shlex

import datasets
import pytest
from datasets import Dataset

from tests.data.files import png, write, write_json, write_jsonl, write_tar
from unigame.data import build_dataset
from unigame.data.guess import guess_source
from unigame.errors import UserError
from unigame.settings.yaml_words import parse_yaml

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


def test_a_name_with_tar_in_it_is_no_shard(folder):
    for place in ("x.tar_unpacked/t.json", "data.target.json"):
        path = write_json(folder / place, [{**ASKED, "image": str(folder / "a.png")}])
        assert guess_source(str(path)).source["type"] == "vqa"


def test_splits_of_an_image_folder_are_not_joined(folder):
    home = folder.parent / "splits"
    for split, number in (("train", 2), ("test", 3)):
        rows = [{"file_name": f"{n}.png", "text": f"{split} {n}"} for n in range(number)]
        write_jsonl(home / split / "metadata.jsonl", rows)
        for row in rows:
            write(home / split / row["file_name"], png())
    source = guess_source(str(home)).source
    assert source["type"] == "hf"
    assert [record["caption"] for record in build_dataset([source])] == ["train 0", "train 1"]


def test_tables_of_a_repository_of_the_hub_lie_further_down(folder):
    home = folder.parent / "clone"
    write(home / "README.md", "# Data")
    (home / "data").mkdir()
    row = {"image": {"bytes": png(), "path": None}, "question": "Which?", "answer": "red"}
    Dataset.from_list([row]).to_parquet(home / "data/train-00000-of-00001.parquet")
    source = guess_source(str(home)).source
    assert source["type"] == "hf" and len(build_dataset([source])) == 1


def test_the_folder_of_shards_further_down_is_named(folder):
    shards = folder.parent / "shards"
    write_tar(shards / "train/0.tar", {"a.png": png(), "a.txt": "a red square"})
    with pytest.raises(UserError, match=r"further down; give the folder .*shards/train$"):
        guess_source(str(shards))


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


# ---- columns that are not the usual ones ---------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "likely"),
    [
        ({"image": "a.png", "prompt": "Which?", "answer": "red"}, "prompt"),
        ({"image": "a.png", "text": "Which?", "answers": ["red", "pink"]}, "text"),
        ({"image": "a.png", "q": "Which?", "answer": "red"}, "q"),
    ],
)
def test_a_question_under_another_name_is_never_taken_for_a_caption(folder, row, likely):
    """It was: G learned to draw questions, and the answers were dropped."""
    table = write_json(folder / "t.json", [row])
    with pytest.raises(UserError, match="answers and no column of questions") as caught:
        guess_source(str(table))
    assert f"is it {likely!r}? name it with columns: {{question: {likely}}}" in str(caught.value)
    record = build_dataset([copied(caught.value)])[0]
    assert (record["question"], record["answer"], record["caption"]) == ("Which?", "red", None)


def test_a_prompt_beside_answers_is_no_caption_for_any_reader(folder):
    row = {"image": "a.png", "images": ["a.png"], "prompt": "Which?", "answer": "red"}
    path = str(write_json(folder / "t.json", [row]))
    for kind, said in (("hf", "1 no text"), ("chat", "1 no text"), ("captions", "no column for")):
        with pytest.raises(UserError, match=said):
            build_dataset([{"type": kind, "path": path}])
    del row["image"]
    with pytest.raises(UserError, match="answers and no column of questions") as caught:
        guess_source(str(write_json(folder / "several.json", [row])))
    assert build_dataset([copied(caught.value)])[0]["question"] == "Which?"


def test_a_question_with_several_pictures_and_a_caption_keeps_its_answer(folder):
    row = {"images": ["a.png"], "question": "Which?", "answer": "red", "caption": "a disc"}
    with pytest.raises(UserError, match="no column of pictures") as caught:
        guess_source(str(write_json(folder / "t.json", [row])))
    assert build_dataset([copied(caught.value)])[0]["answer"] == "red"


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"picture": "a.png", "q": "?", "a": "x"}, "{image: picture, question: q, answer: a}"),
        ({"shown": "a.png", "questoin": "?", "label": "x"}, "{image: shown, question: questoin, "),
        ({"img": "a.png", "captoin": "red"}, "{image: img, caption: captoin}"),
        ({"image": "a.png", "colour": "red"}, "{question: YOUR_COLUMN, answer: YOUR_COLUMN}"),
        ({"pic": "a.png", "question": "?", "answer": "x"}, "columns: {image: pic}"),
    ],
)
def test_unusual_columns_end_in_a_line_to_copy(folder, row, columns):
    table = write_json(folder / "cols.json", [row])
    with pytest.raises(UserError) as caught:
        guess_source(str(table))
    assert columns in str(caught.value) and "\n" not in str(caught.value)
    if "YOUR_COLUMN" not in columns:
        assert len(build_dataset([copied(caught.value)])) == 1


def copied(error, number=0):
    """The source of a line ``--data '[...]'`` in a message, as the command line reads it."""
    words = shlex.split(str(error).split("--data ")[1 + number])
    (source,) = parse_yaml(words[0], "--data")
    return source


def test_columns_that_are_not_read_are_named(folder):
    for row, others in (
        ({**ASKED, "captoin": "red", "choices": ["a"]}, "not read: captoin, choices"),
        ({**CAPTIONED, "label": 3}, "not read: label"),
        ({"image": "a.png", "caption": "red", "question": "?"}, "not read: question"),
        ({**CHAT, "captoin": "red"}, "not read: captoin"),
    ):
        assert guess_source(str(write_json(folder / "t.json", [row]))).said.endswith(others)
    assert "not read" not in guess_source(str(write_json(folder / "t.json", [ASKED]))).said


def test_questions_without_answers_are_no_pictures_alone(folder):
    table = write_json(folder / "t.json", [{"image": "a.png", "question": "Which?"}])
    with pytest.raises(UserError, match="questions and no column of answers"):
        guess_source(str(table))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("list.json", "[]", "holds no rows"),
        ("empty.json", "", "holds no rows"),
        ("zero.jsonl", "", "holds no rows"),
        ("header.csv", "image,caption\n", "holds no rows"),
        ("semi.csv", "image;question;answer\na.png;Which?;red\n", "semi.csv:1 is separated by ';'"),
        ("commas.tsv", "image,caption\na.png,red\n", "separated by ','.*read with tabs"),
        ("data.json", '{"data": [{"image": "a.png"}]}', "list under 'data' must stand alone"),
    ],
)
def test_a_table_that_is_none_says_why(folder, name, content, said):
    with pytest.raises(UserError, match=said):
        guess_source(str(write(folder / name, content)))


# ---- tables that a folder's pictures would hide --------------------------------------------------
TABLE = "image,question,answer\na.png,Which?,red\n"


@pytest.mark.parametrize(
    ("tables", "meant"),
    [
        (("a.csv", "c.csv"), "a.csv"),
        (("b.csv", "q.json"), "b.csv"),
        (("data/train/meta.csv",), "data/train/meta.csv"),
        (("test/meta.csv", "train/meta.csv"), "train/meta.csv"),
        (("README.txt", "annotations/q.csv"), "annotations/q.csv"),
        (("metadata.json",), None),
        (("train.csv", "test.csv"), None),
    ],
)
def test_pictures_do_not_hide_the_tables_of_a_folder(folder, tables, meant):
    """They were taken for pictures without texts, and the questions were lost."""
    for name in ("b", "red/c", "blue/d", "blue/e"):
        write(folder / f"{name}.png", png())
    for name in tables:
        if ".json" in name:
            write_json(folder / name, [ASKED])
        else:
            write(folder / name, TABLE)
    if meant is None:
        assert build_dataset([guess_source(str(folder)).source])[0]["question"] == "Which?"
        return
    with pytest.raises(UserError) as caught:
        guess_source(str(folder))
    said = str(caught.value)
    assert f"as in --data {shlex.quote(str(folder / meant))}, or" in said and "\n" not in said
    assert all(name in said for name in tables if name != "README.txt")
    assert len(build_dataset([copied(caught.value, 1)])) == 5, "the pictures alone"


def test_a_parquet_among_more_pictures_is_named(folder):
    for name in "bcd":
        write(folder / f"{name}.png", png())
    row = {"image": {"bytes": png(), "path": None}, "question": "Which?", "answer": "red"}
    (folder / "data").mkdir()
    Dataset.from_list([row]).to_parquet(folder / "data/x.parquet")
    with pytest.raises(UserError, match=r"data/x\.parquet"):
        guess_source(str(folder))


@pytest.mark.parametrize(
    ("name", "fix"), [("t.xlsx", "export it as csv"), ("t.csv.gz", "unpack it")]
)
def test_a_table_that_cannot_be_read_says_what_can(folder, name, fix):
    path = write(folder / name, "x")
    for given in (folder, path):
        with pytest.raises(UserError, match=rf"{name}.*cannot be read; {fix}, and give --data .*"):
            guess_source(str(given))
    with pytest.raises(UserError) as caught:
        guess_source(str(write(folder.parent / "sheets" / name, "x").parent))
    assert "cannot be read" in str(caught.value) and "pictures" not in str(caught.value)


def test_what_is_passed_by_beside_captions_is_said(folder):
    """Captions in text files and metadata of image folders are read as ever."""
    for name in "bcd":
        write(folder / f"{name}.png", png())
    write(folder / "a.txt", "a red square")
    write(folder / "deep/log.csv", "step,loss\n1,2\n")
    source, said = guess_source(str(folder))
    assert source["type"] == "captions" and said.endswith("tables that are not read: deep/log.csv")
    write(folder / "metadata.csv", "file_name,text\na.png,a red square\n")
    write(folder / "more.csv", TABLE)
    source, said = guess_source(str(folder))
    assert source["type"] == "hf" and said.endswith("tables that are not read: more.csv")
    write(folder / "sheet.xlsx", "x")
    assert guess_source(str(folder)).said.endswith("not read: more.csv, sheet.xlsx")
    assert build_dataset([source])[0]["caption"] == "a red square"


def test_the_json_of_a_picture_and_a_hidden_table_are_no_tables(folder):
    write_json(folder / "deep/b.json", {"likes": 3})
    write(folder / "deep/b.png", png())
    write(folder / ".cache/old.csv", TABLE)
    source, said = guess_source(str(folder))
    assert source["type"] == "pictures" and said.endswith("not read: deep/b.json")
    (folder / "deep/b.json").unlink()
    assert "not read" not in guess_source(str(folder)).said


def test_a_table_among_more_files_than_are_looked_at_is_found(folder, monkeypatch):
    monkeypatch.setattr("unigame.data.guess.LOOKED_AT", 2)
    for name in "bcdefg":
        write(folder / f"data/{name}.png", png())
    write(folder / "data/deeper/meta.csv", TABLE)
    with pytest.raises(UserError, match=r"data/deeper/meta\.csv"):
        guess_source(str(folder))


def test_a_glob_of_pictures_is_a_source_of_pictures(folder):
    for text in (f"{folder}/*.png", f"{folder}/a.png"):
        source, said = guess_source(text)
        assert source == {"type": "pictures", "path": text} and "reca" in said
        assert len(build_dataset([source])) == 1
