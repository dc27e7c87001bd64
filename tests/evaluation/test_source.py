"""Rows from every layout on disk, pictures from every kind of cell; a bad row is only a bad row."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from PIL import Image

from tests.data.files import BLUE, GREEN, color_of, png, write, write_json, write_jsonl
from unigame.data.images import CorruptImage
from unigame.data.pictures import TableCell
from unigame.errors import UserError
from unigame.evaluation import source as module
from unigame.evaluation.base import DataSource, Item
from unigame.evaluation.source import (
    BadRow,
    Rows,
    field,
    fingerprint,
    picture,
    read_json,
    read_rows,
)
from unigame.evaluation.tasks.vqav2.task import VQAv2


def table(count: int = 3) -> datasets.Dataset:
    """Questions with a picture each; the second cell is empty, the third holds no picture."""
    cells = [{"bytes": png(), "path": None}, None, {"bytes": b"no picture", "path": "x.png"}]
    rows = {
        "question": [f"question {i}" for i in range(count)],
        "image": [cells[i % 3] for i in range(count)],
        "answers": [["yes", "no"]] * count,
    }
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def read(root: Path, split: str = "test", required=("question",), **options) -> Rows:
    source = DataSource(root=root, **options)
    return read_rows(source, hub_id="owner/data", config=None, split=split, required=required)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# ---- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["test-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "odd.parquet"]
)
def test_parquet(tmp_path, place):
    file = tmp_path / "pope" / place
    file.parent.mkdir(parents=True)
    table().to_parquet(str(file))
    rows = read(tmp_path / "pope")
    assert [row["question"] for row in rows.rows] == ["question 0", "question 1", "question 2"]
    assert rows.rows[0]["answers"] == ["yes", "no"]
    assert rows.rows[1]["image"] is None and isinstance(rows.rows[0]["image"], TableCell)
    assert rows.info.as_dict() | {"fingerprint": ""} == {
        "id": "pope",
        "split": "test",
        "config": "",
        "revision": "",
        "fingerprint": "",
    }
    assert color_of(picture(rows.rows[0]["image"], rows.root)()) == "red"
    with pytest.raises(CorruptImage, match="corrupt image"):
        picture(rows.rows[2]["image"], rows.root)()


def test_the_shards_of_the_split_are_read_in_order_and_no_others(tmp_path):
    for split, size in (("train", 7), ("test", 2)):
        for shard in range(2):
            name = f"{split}-0000{shard}-of-00002.parquet"
            table(size).to_parquet(str(tmp_path / name))
    assert len(read(tmp_path).rows) == 4
    assert len(read(tmp_path, split="train").rows) == 14
    with pytest.raises(UserError, match=r"no files validation-\*\.parquet; it has .*test, train"):
        read(tmp_path, split="validation")


def test_parts_may_be_counted_from_one(tmp_path):
    for shard in (1, 2):
        table(2).to_parquet(str(tmp_path / f"test-0000{shard}-of-00002.parquet"))
    assert len(read(tmp_path).rows) == 4


def test_a_set_of_which_parts_are_missing_is_refused(tmp_path):
    for shard in (0, 3):
        table(2).to_parquet(str(tmp_path / f"test-0000{shard}-of-00005.parquet"))
    with pytest.raises(UserError, match=r"has 2 of the 5 files of test.*00001, 00002, 00004\)"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("names", "split", "read_from"),
    [
        (["train.parquet", "val.parquet"], "validation", "val.parquet"),
        (["train.jsonl", "valid.jsonl"], "validation", "valid.jsonl"),
        (["val-00000-of-00001.parquet", "validation.parquet"], "val", "val-00000-of-00001.parquet"),
        (["vqa_Val2014.jsonl"], "validation", "vqa_Val2014.jsonl"),
        (["MMBench_TEST_EN_V11.tsv"], "test", "MMBench_TEST_EN_V11.tsv"),
        (["vqa-test-dev.jsonl"], "testdev", "vqa-test-dev.jsonl"),
        (["contest.jsonl"], "validation", "contest.jsonl"),
        (["0000.parquet", "0001.parquet"], "validation", "0000.parquet 0001.parquet"),
        (["part-1.parquet", "part-2.parquet"], "validation", "part-1.parquet part-2.parquet"),
        (["x_0_of_2.parquet", "x_1_of_2.parquet"], "test", "x_0_of_2.parquet x_1_of_2.parquet"),
        (
            ["part-00000-ab12-c000.parquet", "part-00002-ab12-c000.parquet"],
            "test",
            "part-00000-ab12-c000.parquet part-00002-ab12-c000.parquet",
        ),
    ],
)
def test_the_file_of_a_split(names, split, read_from, tmp_path):
    files = [tmp_path / name for name in names]
    assert [file.name for file in module._of_split(files, split, tmp_path)] == read_from.split()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["test.parquet", "train.parquet"],
            "several files .* test.parquet, train.parquet; .*--spl",
        ),
        (["a.parquet", "b.parquet"], "several files that may be split 'validation'"),
        (["vqa2014.parquet", "vqa2017.parquet"], "several files"),
        (["val.parquet", "valid.parquet"], "several files"),
        (["train.parquet"], "train.parquet is named after 'train'; choose that with --split train"),
        (["train.jsonl"], "--split train, or rename the file validation.jsonl"),
        (["vqa_test2015.tsv"], "named after 'test'"),
        (["train_0.parquet", "train_1.parquet"], "named after 'train'"),
        (["dev.parquet"], "named after 'dev'"),  # MMMU has both
    ],
)
def test_files_of_other_splits_are_refused(names, message, tmp_path):
    for name in names:
        if name.endswith("parquet"):
            table().to_parquet(str(tmp_path / name))
        else:
            write_jsonl(tmp_path / name, [{"question": "a"}])
    with pytest.raises(UserError, match=message):
        read(tmp_path, split="validation")


def test_the_folder_of_a_configuration_goes_first(tmp_path):
    (tmp_path / "Full").mkdir()
    table(1).to_parquet(str(tmp_path / "Full" / "test-00000-of-00001.parquet"))
    table(2).to_parquet(str(tmp_path / "test-00000-of-00001.parquet"))
    assert len(read(tmp_path, config="Full").rows) == 1
    assert len(read(tmp_path).rows) == 2


def test_save_to_disk_alone_and_as_a_dictionary_of_splits(tmp_path):
    table().save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": table(), "dev": table(1)}).save_to_disk(str(tmp_path / "two"))
    assert len(read(tmp_path / "one").rows) == 3
    rows = read(tmp_path / "two", split="dev")
    assert len(rows.rows) == 1
    assert color_of(picture(rows.rows[0]["image"])()) == "red"
    with pytest.raises(UserError, match="no split 'val'; it has test, dev"):
        read(tmp_path / "two", split="val")


def test_tsv_with_quoted_line_breaks_and_long_cells(tmp_path):
    picture_64 = base64.b64encode(png(GREEN, size=(300, 300), compress_level=0)).decode()
    assert len(picture_64) > 131_072, "longer than the limit of Python's csv module"
    lines = [
        "index\tquestion\timage",
        f'0\t"two\nlines, and a ""quote"""\t{picture_64}',
        "1\ttoo\tmany\tcells",
        "2\tshort",
        "3\tfine\tx",
    ]
    write(tmp_path / "dev.tsv", "\n".join(lines) + "\n")
    rows = read(tmp_path, split="dev", required=("question", "image")).rows
    assert rows[0]["question"] == 'two\nlines, and a "quote"'
    assert color_of(picture(rows[0]["image"])()) == "green"
    assert field(rows[3], "index", int) == 3
    for row in rows[1:3]:
        with pytest.raises(BadRow, match="wrong number of cells"):
            field(row, "question", str)


def test_jsonl_and_json_lists(tmp_path):
    content = [{"question": "a"}, {"question": "b", "extra": 1}, ["no", "row"]]
    write_jsonl(tmp_path / "l" / "test.jsonl", content)
    with (tmp_path / "l" / "test.jsonl").open("a") as file:
        file.write('{"question": "cut o')
    write_json(tmp_path / "j" / "data.json", content)
    assert [row.get("question") for row in read(tmp_path / "l").rows] == ["a", "b", None, None]
    rows = read(tmp_path / "j").rows
    assert [row.get("question") for row in rows] == ["a", "b", None]
    with pytest.raises(BadRow, match="row is not an object"):
        field(rows[2], "question", str)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    write(tmp_path / "p" / "test-00000-of-00001.parquet", b"PAR1 cut off")
    write(tmp_path / "j" / "test.json", "[1, 2")
    write_json(tmp_path / "d" / "test.json", {"questions": []})
    write(tmp_path / "t" / "test.tsv", b"question\n\xff\xfe\n")
    with pytest.raises(UserError, match="cannot read .*was its download cut short"):
        read(tmp_path / "p")
    with pytest.raises(UserError, match="not valid json"):
        read(tmp_path / "j")
    with pytest.raises(UserError, match="holds a dict, but a list of rows is needed"):
        read(tmp_path / "d")
    with pytest.raises(UserError, match="test.tsv.* is malformed"):
        read(tmp_path / "t")


def test_an_unexpected_layout_is_named(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        read(tmp_path / "absent")
    write(tmp_path / "odd" / "readme.md", "x")
    with pytest.raises(UserError, match="holds no parquet.*it holds readme.md"):
        read(tmp_path / "odd")
    write_jsonl(tmp_path / "rows" / "test.jsonl", [{"text": "a"}, {"text": "b", "label": 1}])
    with pytest.raises(UserError, match="no column 'question'; it has text, label, but"):
        read(tmp_path / "rows")
    write(tmp_path / "none" / "test.jsonl", "\n")
    with pytest.raises(UserError, match="holds no rows"):
        read(tmp_path / "none")
    for name in "ab":
        write_jsonl(tmp_path / "two" / f"{name}.jsonl", [{"question": "a"}])
    with pytest.raises(UserError, match="several files that may be split 'test'.*a.jsonl, b.jsonl"):
        read(tmp_path / "two")


def test_one_row_with_the_column_is_enough(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a"}, {"question": "b"}])
    assert len(read(tmp_path).rows) == 2


# ---- the Hub -------------------------------------------------------------------------------------


def test_the_hub_is_asked_for_what_the_source_overrides(monkeypatch):
    asked = []
    commit = "0123456789abcdef0123456789abcdef01234567"

    def load_builder(path, **options):
        return SimpleNamespace(name="parquet", config=None)

    def load_dataset(path, name=None, *, split, revision=None):
        asked.append((path, name, split, revision))
        found = table()
        found.info.download_checksums = {f"hf://datasets/{path}@{commit}/test.parquet": {}}
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", load_builder)
    options = {"config": "default", "split": "test", "required": ["question"]}
    rows = read_rows(DataSource(), hub_id="lab/POPE", **options)
    assert rows.root is None and rows.info.revision == commit and rows.info.config == "default"
    source = DataSource(hub_id="me/POPE", config="Full", split="random", revision="v1")
    read_rows(source, hub_id="lab/POPE", **options)
    assert asked == [
        ("lab/POPE", "default", "test", None),
        ("me/POPE", "Full", "random", "v1"),
    ]
    with pytest.raises(UserError, match="no data set on the Hub.*--data-root"):
        read_rows(DataSource(), hub_id=None, **options)


def test_a_csv_of_the_hub_stays_text_and_says_its_commit(tmp_path, monkeypatch):
    """pandas would take the answer None for an empty cell, and 007 for a number."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    local = write(tmp_path / "download", "question,answer\nWho?,None\nWhich?,007\n")
    files = {"test": [f"hf://datasets/lab/csv@{commit}/test.csv"]}
    builder = SimpleNamespace(name="csv", config=SimpleNamespace(data_files=files))
    manager = SimpleNamespace(download_and_extract=lambda names: [str(local)] * len(names))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: builder)
    monkeypatch.setattr(datasets, "DownloadManager", lambda: manager)
    rows = read_rows(
        DataSource(), hub_id="lab/csv", config=None, split="test", required=["question"]
    )
    assert [row["answer"] for row in rows.rows] == ["None", "007"]
    assert rows.info.revision == commit


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def load_dataset_builder(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    with pytest.raises(UserError, match=r"'test' of lab/POPE \(config Full\).*no route\)"):
        read_rows(DataSource(), hub_id="lab/POPE", config="Full", split="test", required=[])


# ---- cells ---------------------------------------------------------------------------------------


def test_pictures_of_every_kind_of_cell(tmp_path):
    write(tmp_path / "a.png", png(BLUE))
    write(tmp_path / "images" / "b.png", png(GREEN))
    cells = {
        "red": [png(), {"bytes": png(), "path": "gone.png"}, base64.b64encode(png()).decode()],
        "blue": ["a.png", {"bytes": None, "path": "a.png"}, tmp_path / "a.png"],
        "green": ["b.png", Image.new("L", (4, 4)).convert("RGB").point(lambda v: v)],
    }
    cells["green"][1].paste(GREEN, (0, 0, 4, 4))
    for color, kinds in cells.items():
        for cell in kinds:
            assert color_of(picture(cell, tmp_path)()) == color


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, "missing image"),
        ("", "missing image"),
        ("c.png", "missing image"),
        ({"bytes": None, "path": None}, "missing image"),
        (7, "missing image"),
        (b"junk", "corrupt image"),
        ("A" * 5000, "corrupt image"),  # valid base64, but of nothing
        ("x/" * 5000 + "#", "missing image"),
        (png()[:40], "corrupt image"),
    ],
)
def test_pictures_that_cannot_be_had_say_why_when_asked_for(tmp_path, cell, reason):
    decode = picture(cell, tmp_path)
    with pytest.raises(CorruptImage) as error:
        decode()
    assert error.value.reason == reason


def test_paths_in_data_of_the_hub_are_not_looked_up_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.png", png())
    with pytest.raises(CorruptImage, match="no file 'a.png' in a data set of the Hub"):
        picture("a.png", None)()


def test_equal_pictures_have_equal_keys_and_others_do_not(tmp_path):
    write(tmp_path / "a.png", png())
    same = [picture(png()), picture("a.png", tmp_path), picture({"bytes": png(), "path": None})]
    assert len({each.key() for each in same}) == 1
    assert picture(png(BLUE)).key() != same[0].key()
    with pytest.raises(CorruptImage):
        picture("b.png", tmp_path).key()


def test_fields_of_the_right_kind_and_of_the_wrong_one():
    row = {"question": "what", "id": "12", "n": 3, "ok": True, "none": None, "share": 1}
    assert field(row, "question", str) == "what"
    assert field(row, "id", int) == 12 and field(row, "id", int | str) == "12"
    assert field(row, "share", float) == 1.0 and field(row, "ok", bool) is True
    for name, kind, reason in [
        ("absent", str, "missing column absent"),
        ("none", str, "missing column none"),
        ("n", str, "n is int, expected str"),
        ("ok", int, "ok is bool, expected int"),
        ("question", list, "question is str, expected list"),
        ("question", int, "question is str, expected int"),
        ("ok", int | str, "ok is bool, expected int or str"),
        ("n", (str, list), "n is int, expected str or list"),
    ]:
        with pytest.raises(BadRow) as error:
            field(row, name, kind)
        assert error.value.reason == reason


# ---- files and fingerprints ----------------------------------------------------------------------


def test_read_json_names_the_file(tmp_path):
    assert read_json(write_json(tmp_path / "a.json", {"a": 1})) == {"a": 1}
    with pytest.raises(UserError, match="b.json"):
        read_json(tmp_path / "b.json")
    with pytest.raises(UserError, match="c.json is not valid json"):
        read_json(write(tmp_path / "c.json", "{"))


def test_the_fingerprint_sees_every_part_that_matters():
    base = {"id": "1", "prompt": "p", "reference": {"a": 1, "b": [2]}}
    first = fingerprint([Item(**base)])
    assert first == fingerprint([Item(**{**base, "reference": {"b": [2], "a": 1}})])
    changes = [{"id": "2"}, {"prompt": "q"}, {"reference": {"a": 2}}, {"cluster": "c"}]
    others = {fingerprint([Item(**{**base, **change})]) for change in [*changes, {"samples": 2}]}
    assert first not in others and len(others) == 5
    assert fingerprint([Item("1", "p"), Item("2", "p")]) != fingerprint(
        [Item("2", "p"), Item("1", "p")]
    )
    assert json.dumps(first) and len(first) == 64 and module.__all__


# ---- files that no one means ---------------------------------------------------------------------

DEEP = "[" * 200_000
ROW = {"question_id": 1, "question": "?", "answers": ["a"], "image": "1.jpg"}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("form", ["list", "lines"])
def test_a_list_and_lines_are_read_under_either_name(tmp_path, name, form):
    rows = [ROW, {**ROW, "question_id": 2}]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(json.dumps(rows, indent=1) if form == "list" else lines)
    assert [item.id for item in VQAv2().load(DataSource(root=tmp_path)).items] == ["1", "2"]


def test_a_line_that_is_deep_or_no_text_costs_only_itself(tmp_path):
    broken = [
        DEEP.encode(),
        b'{"question_id": 2, "question": "\xff"}',
        json.dumps({**ROW, "question_id": 3, "question": "half \ud800"}).encode(),
        json.dumps({**ROW, "question_id": 4, "answers": ["\udfff"]}).encode(),
        json.dumps({**ROW, "question_id": "\ud800"}).encode(),
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([json.dumps(ROW).encode(), *broken]))
    loaded = VQAv2().load(DataSource(root=tmp_path))
    assert [item.id for item in loaded.items] == ["1"]
    assert loaded.skips.counts() == {"not valid json": 5}


@pytest.mark.parametrize("content", [DEEP, '{"questions": ' * 100_000, "\udcff", '[{"a": 1}'])
@pytest.mark.parametrize("name", ["rows.json", "v2_OpenEnded_mscoco_val2014_questions.json"])
def test_a_json_file_that_is_deep_or_no_text_is_one_line(tmp_path, content, name):
    (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=name) as caught:
        VQAv2().load(DataSource(root=tmp_path))
    assert "\n" not in str(caught.value)
