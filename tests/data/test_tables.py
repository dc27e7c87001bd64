"""One rule for all tables: what pandas writes comes back, and training and evaluation agree."""

import json

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.data.files import png, write, write_json, write_jsonl
from unigame.data import VQA, Captions, HFData
from unigame.data.tables import read_json, read_table, split_cells
from unigame.errors import UserError
from unigame.evaluation.base import DataSource
from unigame.evaluation.source import read_rows

TEXTS = [
    'is the 5" disc "red"?',
    '"quoted"',
    "a\ttab, a comma",
    "two\nlines",
    "None",
    "NA",
    "null",
    "n/a",
    "nan",
    "007",
    "2014-05-01",
    "1e5",
    "True",
    "Ünïcode 猫",
]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def frame():
    rows = {"image": ["a b.png"] * len(TEXTS), "question": TEXTS, "answer": TEXTS}
    return pd.DataFrame({**rows, "question_id": [f"{n:03d}" for n in range(len(TEXTS))]})


def evaluation_rows(folder):
    source = DataSource(root=folder)
    return read_rows(source, hub_id=None, config=None, split="test", required=("question",)).rows


SAVED = {
    "pandas.tsv": {"sep": "\t", "index": False},
    "pandas.csv": {"index": False},
    "all_quoted.tsv": {"sep": "\t", "index": False, "quoting": 1},
    "with_index.csv": {},
    "bom_crlf.csv": {"index": False, "encoding": "utf-8-sig", "lineterminator": "\r\n"},
    "excel.tsv": {"sep": "\t", "index": False, "encoding": "utf-16"},
}


@pytest.mark.parametrize("name", SAVED)
def test_what_pandas_wrote_comes_back_in_training_and_evaluation(tmp_path, name):
    write(tmp_path / "a b.png", png())
    frame().to_csv(tmp_path / name, **SAVED[name])
    readers = [VQA(tmp_path / name)]
    if name.endswith(".csv"):
        readers.append(HFData(tmp_path / name))
    for data in readers:
        assert [data[i]["question"] for i in range(len(data))] == TEXTS
        assert [data[i]["answer"] for i in range(len(data))] == TEXTS
        assert data[7]["id"] == "007"
    rows = evaluation_rows(tmp_path)
    assert [row["question"] for row in rows] == TEXTS


def test_captions_agree_with_evaluation_also_where_quotes_are_not_pandas(tmp_path):
    cells = ['"red" is a 5" thing', '"never closed', 'all "" of it', "plain", '"as ""pandas"""']
    meant = [*cells[:-1], 'as "pandas"']
    write(tmp_path / "a.png", png())
    text = "image\tcaption\n" + "".join(f"a.png\t{cell}\n" for cell in cells)
    table = write(tmp_path / "t.tsv", text)
    data = Captions(table)
    assert [data[i]["caption"] for i in range(len(data))] == meant
    source = DataSource(root=tmp_path)
    rows = read_rows(source, hub_id=None, config=None, split="t", required=("caption",)).rows
    assert [row["caption"] for row in rows] == meant


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a,b\nc,d", [(1, ["a", "b"]), (2, ["c", "d"])]),
        ("a,b\r\n\r\nc,d\r", [(1, ["a", "b"]), (3, ["c", "d"])]),
        ('"a\n,""b"\n,\n"","x"', [(1, ['a\n,"b']), (3, ["", ""]), (4, ["", "x"])]),
        ('a"b,"c" d\n"e', [(1, ['a"b', '"c" d']), (2, ['"e'])]),
        ("", []),
    ],
)
def test_cells_and_the_lines_they_start_on(text, rows):
    assert list(split_cells(text, ",")) == rows


def test_a_text_of_several_lines_is_no_quote_that_was_left_open(tmp_path):
    cell = "two pictures:\nb.png, c.png\nb.png,c.png\nand more, a.png too"
    table = write(tmp_path / "t.csv", f'image,caption\na.png,"{cell}"\n')
    assert [row["caption"] for _, row in read_table(table)] == [cell]


@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_lines_of_json_in_utf_16(tmp_path, name):
    rows = [{"q": "ü"}, {"q": "猫"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    table = write(tmp_path / name, text.encode("utf-16"))
    assert [row for _, row in read_table(table)] == rows


def test_answers_of_a_csv_are_one_text_or_a_list_as_json(tmp_path):
    write(tmp_path / "a.png", png())
    cells = ["red", '"[""two"", ""two"", ""2""]"', "\"['four', 'four', '4']\"", '"[sic]"']
    rows = "".join(f"a.png,?,{cell}\n" for cell in cells)
    data = VQA(path=write(tmp_path / "t.csv", f"image,question,answers\n{rows}"))
    assert [record["answer"] for record in data] == ["red", "two", "four", "[sic]"]


def test_many_open_quotes_cost_no_more_than_their_length():
    text = "\n".join(['"open\tx'] * 20_000)
    assert sum(1 for _ in split_cells(text, "\t")) == 20_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"image,image\na,b\n", r"t\.csv:1 names the column 'image' twice"),
        ("t.csv", b"image,q\na,b\n\xff,x\n", r"t\.csv:3 is malformed"),
        ("t.tsv", "image\tq\na\tb".encode("utf-16")[:-1], r"t\.tsv:\d+ is malformed"),
        ("t.csv", b"image,q\na,b\nc\n", r"t\.csv:3 has 1 cells"),
        ("t.json", b"[" * 200_000, r"t\.json is not valid json \(nested too deeply"),
        ("t.json", b'["a", "\\ud83d"]', r"t\.json\[1\] is not valid json \(lone surrogate .ud83d"),
        ("t.json", b'["a",\n"\xff"]', r"t\.json:2 is not valid json .* save it as UTF-8"),
        ("t.json", b'["a",', r"t\.json is not valid json .* was its download cut short"),
        ("t.tsv", b'image\tq\na.png\t"stop\nb.png\t2\nc.png\t5"\n', r"t\.tsv:2 .* on line 4"),
        (
            "t.csv",
            b'image,q,a\na.png,?,"stop\nb.png,?,5"\n',
            r"t\.csv:2 begins a cell with a quote",
        ),
        ("t.jsonl", b'{"q": "\\udc00"}', r"t\.jsonl:1 is not valid json \(lone surrogate"),
        ("t.jsonl", b'{"a": 1}\n{"q": ' + b"[" * 200_000, r"t\.jsonl:2 .*nested too deeply"),
        ("t.jsonl", b'{"a": 1}\n\n"text"', r"t\.jsonl:3 is 'text'"),
    ],
)
def test_a_malformed_file_is_one_line_that_names_the_place(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        list(read_table(write(tmp_path / name, content)))
    assert "\n" not in str(caught.value)


def test_pairs_of_surrogates_are_letters(tmp_path):
    file = write(tmp_path / "t.json", b'{"cat": "\\ud83d\\ude3a \\\\ud83d"}')
    assert read_json(file) == {"cat": "\U0001f63a \\ud83d"}


def test_an_image_folders_metadata_stays_text(tmp_path):
    words = ["NA", "007", "2014-05-01"]
    for kind in ("csv", "jsonl"):
        for number in range(3):
            write(tmp_path / kind / f"train/{number}.png", png())
        rows = [{"file_name": f"{n}.png", "text": word} for n, word in enumerate(words)]
        if kind == "csv":
            pd.DataFrame(rows).to_csv(tmp_path / kind / "train/metadata.csv", index=False)
        else:
            write_jsonl(tmp_path / kind / "train/metadata.jsonl", rows)
        data = HFData(tmp_path / kind)
        assert [data[i]["caption"] for i in range(3)] == words
        assert data[1]["image"].size == (8, 6)
        assert len(HFData(tmp_path / kind, split="train[1:]")) == 2
        with pytest.raises(UserError, match="no split 'test'; it has train"):
            HFData(tmp_path / kind, split="test")


def test_folders_and_globs_of_csv_stay_text(tmp_path):
    write(tmp_path / "c/a.png", png())
    for split, answer in (("train", "NA"), ("test", "007")):
        write(tmp_path / f"c/{split}.csv", f"image,question,answer\na.png,Q?,{answer}\n")
    assert HFData(tmp_path / "c")[0]["answer"] == "NA"
    assert HFData(tmp_path / "c", split="test")[0]["answer"] == "007"
    both = HFData(f"{tmp_path}/c/*.csv", split="train")
    assert sorted(both[i]["answer"] for i in range(2)) == ["007", "NA"]
    joined = HFData(tmp_path / "c", split="train+test[:50%]")
    assert len(joined) >= 1


def test_dates_in_json_stay_text(tmp_path):
    write(tmp_path / "a.png", png())
    rows = [{"image": "a.png", "question": "When?", "answer": "2014-05-01", "n": None}] * 2
    for path in (write_json(tmp_path / "t.json", rows), write_jsonl(tmp_path / "t.jsonl", rows)):
        data = HFData(path)
        assert [data[i]["answer"] for i in range(2)] == ["2014-05-01"] * 2


def test_text_in_parquet_that_is_not_utf8_is_one_line(tmp_path):
    raw = pa.array([b"\xff\xfe"]).cast(pa.binary()).view(pa.string())
    table = pa.table({"image": ["a.png"], "caption": raw, "question": raw})
    pyarrow.parquet.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match="not UTF-8"):
        HFData(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match="not UTF-8"):
        list(evaluation_rows(tmp_path))


@pytest.mark.parametrize("name", ["a\0b.png", "n" * 5_000 + ".png", "\u2028/../x.png"])
@pytest.mark.parametrize("verify", ["exists", "decode"])
def test_a_name_that_no_file_can_have_is_a_missing_picture(tmp_path, name, verify):
    write(tmp_path / "a.png", png())
    rows = [{"image": image, "question": "Q?", "answer": "a"} for image in (name, "a.png")]
    for reader in (VQA, HFData):
        data = reader(write_json(tmp_path / "t.json", rows), verify=verify)
        assert (len(data), data.skips.counts()) == (1, {"missing image": 1})
