"""VQAv2's files, tables, and folders."""

import json

import pytest

from tests.data.files import (
    BLUE,
    GREEN,
    RED,
    color_of,
    jpeg,
    png,
    ten,
    write,
    write_json,
    write_jsonl,
    write_vqav2,
)
from unigame.data import VQA, Captions
from unigame.errors import UserError
from unigame.evaluation.tasks.vqav2.task import read_vqa_files


def test_vqav2_official_files(tmp_path):
    data = VQA(**write_vqav2(tmp_path))
    assert len(data) == 3
    first, _, last = data[0], data[1], data[2]
    assert color_of(first.pop("image")) == "red"
    assert first == {
        "question": "How many cookies?",
        "answer": "2",
        "caption": None,
        "id": "9000",
        "answers": ["2"] * 7 + ["two"] * 3,
    }
    assert (last["id"], last["answer"], color_of(last["image"])) == ("25000", "yes", "blue")
    assert data.skips.summary() == "3 rows, 0 skipped"


def test_vqav2_test_dev_has_test_images_and_no_answers(tmp_path):
    files = write_vqav2(tmp_path, subset="test-dev2015")
    del files["annotations"]
    with pytest.raises(UserError, match="require_answers"):
        VQA(**files)
    data = VQA(**files, require_answers=False)
    assert data[0]["answer"] is None
    assert data[0]["question"] == "How many cookies?"


def test_vqav2_missing_image_is_skipped_and_counted(tmp_path):
    data = VQA(**write_vqav2(tmp_path, images=(25,)))
    assert [data[i]["id"] for i in range(len(data))] == ["25000"]
    assert color_of(data[0]["image"]) == "blue"
    assert data.skips.counts() == {"missing image": 2}
    said = data.skips.summary()
    assert said.startswith("1 rows, 2 skipped: 2 missing image (9000, 9001), first: no file '/")
    assert f"{tmp_path}/train2014/COCO_train2014_000000000009.jpg'" in said


def test_vqav2_image_pattern(tmp_path):
    files = write_vqav2(tmp_path)
    for old in files["images"].iterdir():
        old.rename(old.with_name(old.name[-16:]))
    assert len(VQA(**files, image_pattern="{image_id:012d}.jpg")) == 3
    for bad in ("{picture}.jpg", "{image_id:012q}.jpg", "same.jpg", "{0}.jpg", 7):
        with pytest.raises(UserError, match="image_pattern"):
            VQA(**files, image_pattern=bad)


def test_vqav2_files_of_different_splits_are_refused(tmp_path):
    files = write_vqav2(tmp_path)
    annotations = json.loads(files["annotations"].read_text())
    del annotations["annotations"][0]
    write_json(files["annotations"], annotations)
    with pytest.raises(UserError, match="25000 is not in .*same split"):
        VQA(**files)
    annotations["annotations"][0]["image_id"] = 25
    write_json(files["annotations"], annotations)
    with pytest.raises(UserError, match="question_id 900[01] has image_id 9, but 25"):
        VQA(**files)


def test_vqav2_two_annotations_of_one_question_are_refused(tmp_path):
    """Also in evaluation; the last one used to win."""
    files = write_vqav2(tmp_path)
    content = json.loads(files["annotations"].read_text())
    again = dict(content["annotations"][0])
    content["annotations"].append(again)
    write_json(files["annotations"], content)
    assert len(VQA(**files)) == 3  # said twice, and the same
    assert len(read_vqa_files(tmp_path, "train")) == 3
    again["answers"] = ten(["no"] * 10)
    write_json(files["annotations"], content)
    number = again["question_id"]
    with pytest.raises(UserError, match=rf"annotations\[3\]: question_id {number} has other"):
        VQA(**files)
    with pytest.raises(UserError, match=f"two annotations of question {number}"):
        read_vqa_files(tmp_path, "train")


def test_vqav2_swapped_and_damaged_files(tmp_path):
    files = write_vqav2(tmp_path)
    with pytest.raises(UserError, match='no list "questions"'):
        VQA(**{**files, "questions": files["annotations"]})
    with pytest.raises(UserError, match="images: .*is a file"):
        VQA(**{**files, "images": files["questions"]})
    write(files["questions"], files["questions"].read_text()[:-20])
    with pytest.raises(UserError, match="questions.json is not valid json"):
        VQA(**files)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_table_of_questions(tmp_path, suffix):
    write(tmp_path / "pics/a.png", png(RED))
    write(tmp_path / "pics/b.png", png(GREEN))
    rows = [
        {"image": "pics/a.png", "question": "Color?", "answer": "red", "id": "x", "caption": "sea"},
        {"image": "pics/b.png", "question": "Color? ", "answers": ["blue", "green", "green"]},
    ]
    path = tmp_path / f"list{suffix}"
    (write_jsonl if suffix == ".jsonl" else write_json)(path, rows)
    data = VQA(path)
    assert data[0]["caption"] == "sea"
    assert data[0]["id"] == "x"
    assert "answers" not in data[0]
    second = data[1]
    assert (second["question"], second["answer"]) == ("Color?", "green")
    assert second["answers"] == ["blue", "green", "green"]
    assert color_of(second["image"]) == "green"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png", "question": "Q"}, "no column for the answer or answers"),
        ({"image": "a.png", "answer": "x"}, "no column for the question"),
        ({"question": "Q", "answer": "x"}, "no column for the image"),
        ({"image": "a.png", "question": "Q", "answer": ""}, "empty answer"),
        ({"image": "a.png", "question": "Q", "answer": 3}, "answer is 3, but must be text"),
        ({"image": "a.png", "question": "Q", "answers": []}, "empty answer"),
        ({"image": "a.png", "question": "Q", "answers": 3}, "answers is 3, but must"),
        ({"image": "a.png", "question": "Q", "answers": [{"text": "yes"}]}, "list of texts"),
        ({"image": None, "question": "Q", "answer": "x"}, "image is None"),
        ({"image": "https://x.y/a.png", "question": "Q", "answer": "x"}, "is a link"),
        (["a.png", "Q", "x"], "must be an object"),
    ],
)
def test_malformed_row_is_named(tmp_path, row, message):
    write(tmp_path / "a.png", png())
    good = {"image": "a.png", "question": "Q", "answer": "x"}
    path = write_jsonl(tmp_path / "list.jsonl", [good, row])
    with pytest.raises(UserError, match=message) as caught:
        VQA(path)
    assert "list.jsonl:2" in str(caught.value)


def test_broken_and_empty_tables(tmp_path):
    write(tmp_path / "a.png", png())
    with pytest.raises(UserError, match="cut.jsonl:1 is not valid json"):
        VQA(write(tmp_path / "cut.jsonl", '{"image": "a.png", "quest'))
    with pytest.raises(UserError, match="latin.jsonl:1 is not valid json"):
        VQA(write(tmp_path / "latin.jsonl", '{"image": "é"}'.encode("latin-1")))
    for name, content in (("none.jsonl", "\n"), ("none.json", "[]"), ("none.csv", "")):
        with pytest.raises(UserError, match="no usable row.*empty"):
            VQA(write(tmp_path / name, content))
    with pytest.raises(UserError, match="holds a dict"):
        VQA(write(tmp_path / "dict.json", "{}"))
    with pytest.raises(UserError, match="unknown kind of file '.xml'"):
        VQA(write(tmp_path / "x.xml", "<a/>"))
    with pytest.raises(UserError, match="does not exist"):
        VQA(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="got neither"):
        VQA()
    only_missing = write_jsonl(
        tmp_path / "m.jsonl", [{"image": "b", "question": "Q", "answer": "x"}]
    )
    with pytest.raises(UserError, match="no usable row .*1 missing image.*check the image folder"):
        VQA(only_missing)


def test_captions_from_csv_with_header_and_cc3m_like_tsv(tmp_path):
    write(tmp_path / "img/a.jpg", jpeg(RED))
    write(tmp_path / "img/b.jpg", jpeg(BLUE))
    table = write(tmp_path / "c.csv", 'caption,image\n"red, and\nonly red",a.jpg\nblue,b.jpg\n')
    data = Captions(table, images=tmp_path / "img")
    assert data[0]["caption"] == "red, and\nonly red"
    assert data[0]["question"] is None
    assert data[0]["answer"] is None
    assert color_of(data[1]["image"]) == "blue"
    plain = write(tmp_path / "c.tsv", 'img/a.jpg\t"red" is a 5" thing\nimg/b.jpg\tblue\n')
    assert [row["caption"] for row in (Captions(plain)[0], Captions(plain)[1])] == [
        '"red" is a 5" thing',
        "blue",
    ]
    odd = write(tmp_path / "odd.csv", "file,words\nimg/a.jpg,red\n")
    assert Captions(odd, columns={"image": "file", "caption": "words"})[0]["caption"] == "red"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\na.jpg\n", "bad.csv:2 has 1 cells where 2"),
        ("image,caption\na.jpg,\n", "bad.csv:2 has an empty caption"),
        ("image,caption\nhttp://x/a.jpg,hello\n", "is a link"),
        ("image,title,extra\na.jpg,hello,1\n", "no column for the caption"),
    ],
)
def test_malformed_caption_tables(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        Captions(write(tmp_path / "bad.csv", content))


def test_wrong_column_mapping_is_named(tmp_path):
    table = write_jsonl(tmp_path / "c.jsonl", [{"image": "a", "caption": "b"}])
    with pytest.raises(UserError, match="no column 'text' for the caption; it has image, caption"):
        Captions(table, columns={"caption": "text"})
    with pytest.raises(UserError, match="unknown field 'title'"):
        Captions(table, columns={"title": "caption"})


def test_folder_of_images_and_texts(tmp_path):
    write(tmp_path / "a.jpg", jpeg(RED))
    write(tmp_path / "a.txt", "red\n")
    write(tmp_path / "sub/b.png", png(GREEN))
    write(tmp_path / "sub/b.txt", "green")
    write(tmp_path / "untold.png", png())
    write(tmp_path / "blank.png", png())
    write(tmp_path / "blank.txt", " ")
    write(tmp_path / "orphan.txt", "text without image")
    data = Captions(tmp_path)
    assert [(data[i]["id"], data[i]["caption"]) for i in range(2)] == [
        ("a", "red"),
        ("sub/b", "green"),
    ]
    assert len(data) == 2
    assert data.skips.counts() == {"no text": 2, "missing image": 1}


def test_verify_decode_drops_damaged_pictures_at_once_and_exists_on_access(tmp_path):
    for name, blob in (("a", png(RED)), ("b", png(GREEN)[:40]), ("c", png(BLUE))):
        write(tmp_path / f"{name}.png", blob)
        write(tmp_path / f"{name}.txt", name)
    strict = Captions(tmp_path, verify="decode")
    assert [strict[i]["caption"] for i in range(len(strict))] == ["a", "c"]
    assert strict.skips.skipped == {"b": "corrupt image"}
    assert len(Captions(tmp_path)) == 3
    assert len(Captions(tmp_path, verify="decode", limit=2)) == 2
    with pytest.raises(UserError, match="verify is 'yes'"):
        Captions(tmp_path, verify="yes")
    for bad in (0, -1, 1.5, True, "ten"):
        with pytest.raises(UserError, match="limit must be"):
            Captions(tmp_path, limit=bad)


def test_verify_none_does_not_look(tmp_path):
    table = write_jsonl(tmp_path / "c.jsonl", [{"image": "gone.png", "caption": "b"}])
    assert len(Captions(table, verify="none")) == 1


def test_ids_are_unique_even_where_the_source_repeats_them(tmp_path):
    write(tmp_path / "a.png", png())
    rows = [{"image": "a.png", "caption": word, "id": 7} for word in "xyz"]
    data = Captions(write_jsonl(tmp_path / "c.jsonl", rows))
    assert [data[i]["id"] for i in range(3)] == ["7", "7#1", "7#2"]
