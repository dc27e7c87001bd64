"""Hugging Face datasets, all local."""

import base64
import pickle
from types import SimpleNamespace

import datasets
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value

from tests.data.files import BLUE, GREEN, RED, color_of, jpeg, png, ten, write, write_jsonl
from unigame.data import VQA, Captions, HFData
from unigame.data.pictures import TableCell
from unigame.data.stored_rows import StoredRows
from unigame.errors import UserError


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No cache outside the test, and any attempt to reach the Hub fails."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def refuse(*args, **kwargs):
        raise AssertionError("a test tried to reach the network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)


VQAV2 = Features(
    {
        "question_type": Value("string"),
        "multiple_choice_answer": Value("string"),
        "answers": List(
            {
                "answer": Value("string"),
                "answer_confidence": Value("string"),
                "answer_id": Value("int64"),
            }
        ),
        "image_id": Value("int64"),
        "answer_type": Value("string"),
        "question_id": Value("int64"),
        "question": Value("string"),
        "image": Image(),
    }
)


@pytest.mark.parametrize("metadata", ["metadata.jsonl", "metadata.parquet"])
def test_pictures_that_the_hub_gives_as_files_are_found(tmp_path, metadata):
    """An image folder stands for one of the Hub: its pictures have a path and no bytes."""
    row = {"file_name": "a.png", "text": "a red square"}
    write(tmp_path / "d/train/a.png", png(RED))
    if metadata.endswith("jsonl"):
        write_jsonl(tmp_path / "d/train" / metadata, [row])
    else:
        Dataset.from_list([row]).to_parquet(tmp_path / "d/train" / metadata)
    (record,) = HFData(tmp_path / "d", hub=True)
    assert color_of(record["image"]) == "red" and record["caption"] == "a red square"


def vqav2(answer=("red", "blue"), images=None):
    blobs = images or [png(RED), jpeg(BLUE)]
    return Dataset.from_dict(
        {
            "question_type": ["what color"] * 2,
            "multiple_choice_answer": list(answer),
            "answers": [ten(["red"] * 6 + ["pink"] * 4), ten(["blue"] * 10)],
            "image_id": [1, 2],
            "answer_type": ["other"] * 2,
            "question_id": [1000, 2000],
            "question": ["What color?", "Which color?"],
            "image": [blob and {"bytes": blob, "path": None} for blob in blobs],
        },
        features=VQAV2,
    )


def check_vqav2(data):
    assert len(data) == 2
    first, second = data[0], data[1]
    assert (color_of(first["image"]), color_of(second["image"])) == ("red", "blue")
    assert (first["id"], first["question"], first["answer"]) == ("1000", "What color?", "red")
    assert first["answers"] == ["red"] * 6 + ["pink"] * 4
    assert second["caption"] is None


def test_vqav2_schema_from_parquet_save_to_disk_and_dict(tmp_path):
    table = vqav2()
    table.to_parquet(tmp_path / "p/train-00000.parquet")
    check_vqav2(HFData(tmp_path / "p/train-00000.parquet"))
    check_vqav2(HFData(tmp_path / "p"))
    check_vqav2(HFData(f"{tmp_path}/p/*.parquet"))
    table.save_to_disk(tmp_path / "saved")
    check_vqav2(HFData(tmp_path / "saved"))
    assert [row["id"] for row in HFData(tmp_path / "saved", split="train[1:]")] == ["2000"]
    DatasetDict({"validation": table}).save_to_disk(tmp_path / "splits")
    check_vqav2(HFData(tmp_path / "splits", split="validation"))
    check_vqav2(HFData(tmp_path / "splits", split="validation[:1]+validation[1:]"))
    with pytest.raises(UserError, match="no split 'test'; it has validation"):
        HFData(tmp_path / "splits", split="validation+test")
    with pytest.raises(UserError, match="no split 'train'; it has validation"):
        HFData(tmp_path / "splits")


def test_ten_answers_alone_give_the_most_common_one(tmp_path):
    vqav2().remove_columns("multiple_choice_answer").to_parquet(tmp_path / "a.parquet")
    data = HFData(tmp_path / "a.parquet")
    assert [data[0]["answer"], data[1]["answer"]] == ["red", "blue"]


def test_unanswered_rows(tmp_path):
    vqav2(answer=("red", None)).remove_columns("answers").to_parquet(tmp_path / "a.parquet")
    data = HFData(tmp_path / "a.parquet")
    assert len(data) == 1
    assert data.skips.skipped == {"2000": "no text"}
    both = HFData(tmp_path / "a.parquet", require_answers=False)
    assert [both[0]["answer"], both[1]["answer"]] == ["red", None]


def test_image_folder_with_metadata(tmp_path):
    write(tmp_path / "f/train/a.png", png(GREEN))
    write(tmp_path / "f/train/b.jpg", jpeg(RED))
    write_jsonl(
        tmp_path / "f/train/metadata.jsonl",
        [{"file_name": "a.png", "text": "green"}, {"file_name": "b.jpg", "text": "red"}],
    )
    data = HFData(tmp_path / "f")
    assert {data[i]["caption"]: color_of(data[i]["image"]) for i in range(2)} == {
        "green": "green",
        "red": "red",
    }


def test_csv_and_json_with_image_paths_and_column_mapping(tmp_path):
    write(tmp_path / "img/a.png", png(GREEN))
    write(tmp_path / "t.csv", "file,words\nimg/a.png,green\nimg/gone.png,lost\n")
    columns = {"image": "file", "caption": "words"}
    data = HFData(tmp_path / "t.csv", columns=columns)
    assert len(data) == 1
    assert (data[0]["caption"], color_of(data[0]["image"])) == ("green", "green")
    assert data.skips.counts() == {"missing image": 1}
    write_jsonl(tmp_path / "sub/t.jsonl", [{"image": "img/a.png", "caption": "green"}])
    assert len(HFData(tmp_path / "sub/t.jsonl", images=tmp_path)) == 1
    with pytest.raises(UserError, match="no usable row"):
        HFData(tmp_path / "sub/t.jsonl")


def test_pictures_within_the_text_and_in_the_folder_images(tmp_path):
    write(tmp_path / "images/b.png", png(BLUE))
    rows = [{"image": base64.b64encode(png(GREEN)).decode(), "caption": "green"}]
    rows += [{"image": "b.png", "caption": "blue"}, {"image": "c.png", "caption": "gone"}]
    for reader in (HFData, Captions):
        data = reader(write_jsonl(tmp_path / "t.jsonl", rows))
        assert [(data[i]["caption"], color_of(data[i]["image"])) for i in range(len(data))] == [
            ("green", "green"),
            ("blue", "blue"),
        ]
        assert data.skips.counts() == {"missing image": 1}


def test_pictures_of_a_table_stay_in_it(tmp_path):
    vqav2().to_parquet(tmp_path / "v.parquet")
    data = HFData(tmp_path / "v.parquet")
    assert all(isinstance(row.image, TableCell) for row in data._rows)
    again = pickle.loads(pickle.dumps(data))  # as a spawned worker gets it
    assert [color_of(again[i]["image"]) for i in range(2)] == ["red", "blue"]


def test_lists_of_pictures_and_captions_by_other_names(tmp_path):
    """List-typed image columns; BAGEL's json of captions; `prompt` is what a picture shows."""
    rows = {
        "image": [[png(RED)], [png(RED), png(BLUE)], [], [png(GREEN)]],
        "captions": ['{"a": "red", "b": "a red square"}', '{"a": "two"}', "x", '["green"]'],
    }
    Dataset.from_dict(
        rows, features=Features({"image": List(Image()), "captions": Value("string")})
    ).to_parquet(tmp_path / "t.parquet")
    data = HFData(tmp_path / "t.parquet")
    assert [(data[i]["caption"], color_of(data[i]["image"])) for i in range(len(data))] == [
        ("red", "red"),
        ("green", "green"),
    ]
    assert data.skips.skipped == {"1": "several pictures", "2": "missing image"}
    write(tmp_path / "a.png", png(RED))
    table = write_jsonl(tmp_path / "t.jsonl", [{"path": "a.png", "prompt": "red"}])
    assert [reader(table)[0]["caption"] for reader in (Captions, HFData)] == ["red", "red"]
    asked = {"path": "a.png", "prompt": "Answer briefly.", "question": "Which?", "answer": "red"}
    assert VQA(write_jsonl(tmp_path / "q.jsonl", [asked]))[0]["caption"] is None
    bad = write_jsonl(tmp_path / "b.jsonl", [{"path": "a.png", "captions": "{broken"}])
    with pytest.raises(UserError, match=r"b\.jsonl:1: captions is no json"):
        Captions(bad)


def test_a_prompt_beside_a_preference_is_no_caption(tmp_path):
    write(tmp_path / "a.png", png())
    row = {"image": "a.png", "prompt": "Which?", "chosen": "red", "rejected": "blue"}
    with pytest.raises(UserError, match="no column for the caption or answer"):
        HFData(write_jsonl(tmp_path / "t.jsonl", [row]))


def test_raw_bytes_column(tmp_path):
    table = Dataset.from_dict({"jpg": [jpeg(BLUE), None], "txt": ["blue", "nothing"]})
    table.to_parquet(tmp_path / "b.parquet")
    data = HFData(tmp_path / "b.parquet")
    assert len(data) == 1
    assert color_of(data[0]["image"]) == "blue"


def test_empty_cells_are_missing_and_damaged_ones_corrupt(tmp_path):
    vqav2(images=[None, jpeg(BLUE)]).to_parquet(tmp_path / "a.parquet")
    data = HFData(tmp_path / "a.parquet")
    assert data.skips.skipped == {"1000": "missing image"}
    assert data[0]["id"] == "2000"
    assert color_of(data[0]["image"]) == "blue"
    unchecked = HFData(tmp_path / "a.parquet", verify="none")
    assert unchecked.__getitems__([0])[0].reason == "missing image"
    vqav2(images=[png(RED)[:50], jpeg(BLUE)]).to_parquet(tmp_path / "b.parquet")
    data = HFData(tmp_path / "b.parquet", verify="decode")
    assert data.skips.skipped == {"1000": "corrupt image"}


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist here.*hub: true"):
        HFData("someone/vqa")
    Dataset.from_dict({"image_url": ["u"], "caption": ["c"]}).to_parquet(tmp_path / "u.parquet")
    with pytest.raises(UserError, match="no column for the image.*only links to images"):
        HFData(tmp_path / "u.parquet")
    vqav2().select_columns(["image", "question"]).to_parquet(tmp_path / "q.parquet")
    with pytest.raises(UserError, match="no column for the caption or answer or answers"):
        HFData(tmp_path / "q.parquet")
    vqav2().to_parquet(tmp_path / "v.parquet")
    with pytest.raises(UserError, match="no column 'reply' for the answer; it has question_type"):
        HFData(tmp_path / "v.parquet", columns={"answer": "reply"})
    with pytest.raises(UserError, match="'image_id' holds int"):
        HFData(tmp_path / "v.parquet", columns={"image": "image_id"})
    with pytest.raises(UserError, match="image_id is 1, but must be text"):
        HFData(tmp_path / "v.parquet", columns={"answer": "image_id"})
    with pytest.raises(UserError, match="cannot read split 'train'"):
        HFData(write(tmp_path / "cut.parquet", b"PAR1 cut"))
    with pytest.raises(UserError, match="kind '.xlsx'"):
        HFData(write(tmp_path / "a.xlsx", "x"))
    write(tmp_path / "shards/0.tar", "x")
    with pytest.raises(UserError, match="type: webdataset"):
        HFData(tmp_path / "shards")


def test_unknown_split_of_a_folder(tmp_path):
    vqav2().to_parquet(tmp_path / "p/train-00000.parquet")
    with pytest.raises(UserError, match="cannot read split 'tset'.*train"):
        HFData(tmp_path / "p", split="tset")


def test_limit_and_split_slice(tmp_path):
    vqav2().to_parquet(tmp_path / "v.parquet")
    assert len(HFData(tmp_path / "v.parquet", limit=1)) == 1
    assert HFData(tmp_path / "v.parquet", split="train[1:]")[0]["id"] == "2000"


def test_only_an_explicit_request_reaches_the_hub(monkeypatch):
    asked = []

    def load_dataset(path, **options):
        asked.append((path, options))
        return vqav2()

    def load_builder(path, **options):
        assert asked or options == {"revision": "v1"}
        return SimpleNamespace(name="parquet", config=None)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", load_builder)
    with pytest.raises(UserError):
        HFData("lmms-lab/VQAv2", split="validation")
    assert not asked
    check_vqav2(HFData("lmms-lab/VQAv2", hub=True, split="validation", revision="v1"))
    assert asked == [("lmms-lab/VQAv2", {"split": "validation", "revision": "v1"})]


def test_rows_stay_in_their_table_and_are_what_was_checked(tmp_path):
    """Only numbers are kept; ids that come twice, rows left out and a limit are as in a list."""
    rows = [
        {
            "image": [{"bytes": png(color), "path": None} for color in (RED, BLUE)[: 1 + i % 2]],
            "question": f"what is {i}?" if i != 2 else None,
            "answer": f"a thing {i}",
            "id": ("a", "b", "c")[i % 3],
        }
        for i in range(9)
    ]
    Dataset.from_list(rows).cast_column("image", List(Image())).save_to_disk(str(tmp_path))
    data = HFData(tmp_path, limit=6)
    assert isinstance(data._rows, StoredRows) and len(data) == 6 == len(data._rows)
    ids = ["a", "b", "a#3", "b#4", "c#5", "a#6"]
    assert [data[i]["id"] for i in range(6)] == ids
    assert [texts["id"] for texts in data.iter_texts()] == ids
    assert [data[i]["question"] for i in (-1, 2)] == ["what is 6?", "what is 3?"]
    assert [len(row.cells) for row in data._rows] == [1, 2, 2, 1, 2, 1]
    assert list(data._rows) == data._rows[:] == [data._rows[i] for i in range(6)]
    assert data.skips.skipped == {"c": "no text"}
    again = pickle.loads(pickle.dumps(data))  # as a spawned worker gets it
    assert list(again._rows)[3].question == "what is 4?" and color_of(again[5]["image"]) == "red"
    with pytest.raises(IndexError):
        data[6]
