"""Conversations in every schema that people have: the same records, or a counted reason."""

import base64
import json

import datasets
import pytest
from datasets import Dataset, Features, Image, List, Value

from tests.data.files import BLUE, GREEN, RED, color_of, png, write, write_json, write_jsonl
from unigame.data import Chat, HFData, build_dataset
from unigame.data.chat import (
    DRAWN,
    MALFORMED,
    MORE_MARKS,
    PLACEHOLDERS,
    UNCHOSEN,
    UNKNOWN_MARK,
    UNLEARNED,
    UNNAMED,
    UNREAD,
    UNSHOWN,
    WRONG,
)
from unigame.data.links import UNASKED
from unigame.data.records import num_pictures, pictures_of
from unigame.errors import UserError


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "red ü.png", png(RED))
    write(tmp_path / "blue.png", png(BLUE))
    return tmp_path


def said(*texts, who=("human", "gpt"), keys=("from", "value")):
    return [{keys[0]: who[n % 2], keys[1]: text} for n, text in enumerate(texts)]


def spoken(*texts):
    return said(*texts, who=("user", "assistant"), keys=("role", "content"))


TWO = ["blue.png", "red ü.png"]
TEXT_VALUE = Value("string")
DATA = "data:image/png;base64," + base64.b64encode(png(RED)).decode()
URL = {"type": "image_url", "image_url": {"url": DATA}}
TEXT = {"type": "text", "text": "Which colour?"}
SCHEMAS = {
    "llava": {"image": "red ü.png", "conversations": said("<image>\nWhich colour?", "red")},
    "mark at the end": {
        "image": ["red ü.png"],
        "conversations": said("Which colour?<image>", "red"),
    },
    "swift": {"images": ["red ü.png"], "messages": spoken("<image>Which colour?", "red")},
    "another column": {"image_path": "red ü.png", "messages": spoken("Which colour?", "red")},
    "a file in the mark": {
        "conversations": said("<img>red ü.png</img>\nWhich colour?", "red"),
    },
    "an object with a link": {
        "images": [{"url": "red ü.png"}],
        "messages": spoken("Which colour?", "red"),
    },
    "a path in a part": {
        "messages": spoken([{"type": "image", "path": "red ü.png"}, TEXT], "red"),
    },
    "a link in a part": {
        "messages": spoken([{"type": "image", "url": "red ü.png"}, TEXT], "red"),
    },
    "base64 in a part": {
        "messages": spoken([{"type": "image", "base64": DATA.split(",")[1]}, TEXT], "red"),
    },
    "base64 in lines": {
        "image": base64.encodebytes(png(RED)).decode(),
        "messages": spoken("Which colour?", "red"),
    },
    "messages as json": {
        "image": "red ü.png",
        "conversations": json.dumps(said("Which colour?", "red")),
    },
    "messages inside out": {
        "image": "red ü.png",
        "conversations": {"from": ["human", "gpt"], "value": ["Which colour?", "red"]},
    },
    "no mark": {"image": "red ü.png", "messages": spoken("Which colour?", "red")},
    "query": {"images": ["red ü.png"], "query": "<image>Which colour?", "response": "red"},
    "trl": {
        "images": ["red ü.png"],
        "messages": spoken([{"type": "image"}, TEXT], [{"type": "text", "text": "red"}]),
    },
    "trl prompts": {
        "image": "red ü.png",
        "prompt": spoken([{"type": "image"}, TEXT]),
        "completion": [{"role": "assistant", "content": "red"}],
    },
    "prompt of text": {"image": "red ü.png", "prompt": "Which colour?", "completion": "red"},
    "openai": {"messages": spoken([TEXT, URL], "red")},
    "align-anything": {
        "prompt": "<image_placeholder> Which colour?",
        "image": "red ü.png",
        "response": "red",
    },
    "system": {
        "image": "red ü.png",
        "messages": [{"role": "system", "content": "Be brief."}, *spoken("Which colour?", "red")],
    },
    "system column": {
        "image": "red ü.png",
        "system": "Be brief.",
        "conversations": said("<image>Which colour?", "red"),
    },
    "system column beside query": {
        "images": ["red ü.png"],
        "system": "Be brief.",
        "query": "<image>Which colour?",
        "response": "red",
    },
    "system message beside its column": {
        "image": "red ü.png",
        "system": "Be long.",
        "messages": [{"role": "system", "content": "Be brief."}, *spoken("Which colour?", "red")],
    },
    "chosen": {
        "images": ["red ü.png"],
        "prompt": "<image>Which colour?",
        "chosen": "red",
        "rejected": "blue",
    },
    "chosen messages": {
        "images": ["red ü.png"],
        "prompt": spoken([{"type": "image"}, TEXT]),
        "chosen": [{"role": "assistant", "content": "red"}],
        "rejected": [{"role": "assistant", "content": "blue"}],
    },
    "chosen conversation": {
        "image": "red ü.png",
        "chosen": spoken("Which colour?", "red"),
        "rejected": spoken("Which colour?", "blue"),
    },
    "chosen conversation beside its prompt": {
        "image": "red ü.png",
        "prompt": "Which colour?",
        "chosen": spoken("Which colour?", "red"),
        "rejected": spoken("Which colour?", "blue"),
    },
    "chosen after a conversation": {
        "images": ["red ü.png"],
        "conversations": said("<image>Which colour?"),
        "chosen": {"from": "gpt", "value": "red"},
        "rejected": {"from": "gpt", "value": "blue"},
    },
    "answered beside chosen": {
        "image": "red ü.png",
        "messages": spoken("Which colour?", "red"),
        "chosen": spoken("Which colour?", "red"),
        "rejected": spoken("Which colour?", "blue"),
    },
    "right by KTO": {
        "image": "red ü.png",
        "label": True,
        "messages": spoken("Which colour?", "red"),
    },
}


@pytest.mark.parametrize("form", ["json", "jsonl", "bom"])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_schema_gives_the_same_record(folder, schema, form):
    row = {"id": "a", **SCHEMAS[schema]}
    path = folder / f"chat.{form if form != 'bom' else 'jsonl'}"
    if form == "json":
        write_json(path, [row])
    elif form == "jsonl":
        write_jsonl(path, [row])
    else:
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\r\n")
    record = dict(Chat(path)[0])
    assert color_of(record.pop("image")) == "red"
    question = "␟Be brief.␞Which colour?" if "system" in schema else "Which colour?"
    assert record == {"id": "a", "question": question, "answer": "red", "caption": None}


def test_pictures_of_a_message_go_before_a_column_of_another_name(folder):
    part = {"type": "image", "image": DATA}
    rows = [
        {"path": "chat1.jpg", "messages": spoken([part, TEXT], "red")},
        {"embedding": "abc.gif", "source": "www.x.y/foo.gif", "messages": spoken("Hi?", "hello")},
    ]
    data = Chat(write_jsonl(folder / "t.jsonl", rows[:1]))
    assert color_of(data[0]["image"]) == "red"
    text = Chat(
        write_jsonl(folder / "u.jsonl", [{k: v for k, v in rows[1].items() if k != "embedding"}])
    )
    assert text[0]["image"] is None and not text.skips.counts()


def test_a_binary_column_of_texts_alone_is_no_picture(folder):
    rows = [{"embedding": b"abc", "messages": spoken("Hi?", "hello")}]
    Dataset.from_list(rows).to_parquet(folder / "t.parquet")
    data = Chat(folder / "t.parquet")
    assert len(data) == 1 and not data.skips.counts()


def test_a_path_as_windows_or_a_browser_writes_it(folder):
    write(folder / "in/red.png", png(RED))
    names = ["in\\red.png", (folder / "in/red.png").as_uri()]
    rows = [{"image": name, "messages": spoken("?", "x")} for name in names]
    data = Chat(write_jsonl(folder / "t.jsonl", rows))
    assert [color_of(record["image"]) for record in data] == ["red", "red"]


def test_pictures_beside_tables_of_several_folders_need_whole_paths(folder):
    row = {"image": "red ü.png", "messages": spoken("?", "x")}
    for name in ("a", "b"):
        write(folder / name / "red ü.png", png(RED))
        write_jsonl(folder / name / "t.jsonl", [row])
    assert len(Chat(folder / "a/*.jsonl")) == 1
    with pytest.raises(UserError, match="lie in several folders; write whole paths"):
        Chat(folder / "*/t.jsonl")


def test_tables_of_datasets(tmp_path):
    features = Features(
        {
            "messages": List(
                {"role": TEXT_VALUE, "content": List({"type": TEXT_VALUE, "text": TEXT_VALUE})}
            ),
            "images": List(Image()),
        }
    )
    asked = [{"type": "text", "text": "Which colour?"}, {"type": "image", "text": None}]
    rows = [
        {"messages": spoken(asked, [{"type": "text", "text": word}]), "images": pictures}
        for word, pictures in (
            ("red", [{"bytes": png(RED), "path": None}]),
            ("lost", []),
            ("green", [{"bytes": png(GREEN), "path": None}]),
        )
    ]
    table = Dataset.from_list(rows, features=features)
    table.to_parquet(tmp_path / "t.parquet")
    table.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "t.parquet", tmp_path / "saved"):
        data = Chat(path)
        assert [(data[i]["answer"], color_of(data[i]["image"])) for i in range(len(data))] == [
            ("red", "red"),
            ("green", "green"),
        ]
        assert data.skips.skipped == {"1": "more image marks than pictures"}


def shown(record):
    """Colours of the pictures, and the texts."""
    colours = [color_of(picture) for picture in pictures_of(record)]
    return colours, record["question"], record["answer"]


def test_each_answer_is_a_record_with_the_picture_that_was_shown(folder):
    turns = said("Hi", "hello", "Which<image>?", "red", "Sure?", "yes")
    row = {"id": "a", "image": "red ü.png", "conversations": turns}
    data = Chat(write_json(folder / "t.json", [row]))
    assert [row["id"] for row in data] == ["a/0", "a/1", "a/2"]
    assert list(map(shown, data)) == [
        ([], "Hi", "hello"),
        (["red"], "Hi␟hello␞␝Which\n?", "red"),
        (["red"], "Hi␟hello␞␝Which\n?␟red␞Sure?", "yes"),
    ]
    assert data[0]["image"] is None and "images" not in data[1]
    assert data.skips.summary() == "3 rows (1 of text alone), 0 skipped"
    assert [num_pictures(texts) for texts in data.iter_texts()] == [0, 1, 1]
    alone = Chat(folder / "t.json", turns="split")
    assert [row["question"] for row in alone] == ["Hi", "Which\n?", "Sure?"]
    assert [len(pictures_of(row)) for row in alone] == [0, 1, 1]
    with pytest.raises(UserError, match="turns is 'joined'"):
        Chat(folder / "t.json", turns="joined")


def test_several_pictures_stand_where_their_marks_are(folder):
    turns = said("<image> or <image>?", "red", "And <image>?", "blue", "Sure?", "yes")
    row = {"image": ["blue.png", "red ü.png", "blue.png"], "conversations": turns}
    data = Chat(write_json(folder / "t.json", [row]))
    first = "␝or␝?"
    assert list(map(shown, data)) == [
        (["blue", "red"], first, "red"),
        (["blue", "red", "blue"], f"{first}␟red␞And␝?", "blue"),
        (["blue", "red", "blue"], f"{first}␟red␞And␝?␟blue␞Sure?", "yes"),
    ]
    assert color_of(data[0]["image"]) == "blue"
    assert data.skips.summary() == "3 rows (3 of several pictures), 0 skipped"
    alone = Chat(folder / "t.json", turns="split")
    assert [row["question"] for row in alone] == [first, "␝␝And␝?", "␝␝␝Sure?"]
    unmarked = {"images": TWO, "messages": spoken("Which?", "red")}
    assert shown(Chat(write_json(folder / "u.json", [unmarked]))[0])[1] == "␝␝Which?"
    gone = {"images": ["blue.png", "gone.png"], "messages": spoken("Which?", "red")}
    data = Chat(write_json(folder / "u.json", [unmarked, gone]))
    assert data.skips.skipped == {"1": "missing image"}


def test_a_table_of_datasets_with_several_pictures(folder):
    rows = [
        {"image": TWO, "question": "Which?", "answer": "red", "caption": "x"},
        {"image": TWO, "question": None, "answer": None, "caption": "x"},
        {"image": TWO[:1], "question": "Which?", "answer": "blue", "caption": "x"},
    ]
    data = HFData(write_jsonl(folder / "t.jsonl", rows), images=folder)
    assert list(map(shown, data)) == [
        (["blue", "red"], "Which?", "red"),
        (["blue"], "Which?", "blue"),
    ]
    assert [row["caption"] for row in data] == [None, "x"]
    assert data.skips.skipped == {"1": "several pictures"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"images": TWO, "messages": spoken("<image>?", "x")}, UNSHOWN),
        ({"image": "blue.png", "messages": spoken("<image>?", "x", "<image>?", "y")}, MORE_MARKS),
        ({"image": "http://x/a.png", "messages": spoken("?", "x")}, UNASKED),
        ({"image": "gone.png", "messages": spoken("?", "x")}, "missing image"),
        ({"image": "blue.png", "messages": spoken("?", "")}, MALFORMED),
        ({"image": "blue.png", "messages": spoken("<image>", "x")}, MALFORMED),
        ({"images": [], "messages": spoken("<image>?", "x")}, MORE_MARKS),
        ({"image": "blue.png", "messages": said("?", "x", who=("Q", "A"))}, MALFORMED),
        ({"image": "blue.png", "messages": ["?", "x"]}, MALFORMED),
        ({"image": "blue.png", "messages": spoken([{"type": "video"}], "x")}, MALFORMED),
        ({"image": "blue.png", "messages": "?"}, MALFORMED),
        ({"image": 7, "messages": spoken("?", "x")}, MALFORMED),
        ({"messages": spoken("<video>?", "x"), "videos": ["a.mp4"]}, UNREAD),
        ({"image": "blue.png", "messages": spoken("<audio>?", "x"), "audios": ["a.wav"]}, UNREAD),
        ({"image": "blue.png", "messages": spoken("?", "<bbox>"), "objects": {}}, PLACEHOLDERS),
        ({"image": "blue.png", "messages": spoken("?", "x"), "label": False}, WRONG),
        ({"image": "blue.png", "messages": spoken("?", "x"), "kto_tag": 0}, WRONG),
        ({"image": "blue.png", "prompt": "?", "completion": "x", "label": 0}, WRONG),
        ({"image": "blue.png", "messages": spoken("<ImageHere>?", "x")}, UNKNOWN_MARK),
        ({"image": "blue.png", "messages": spoken("<image_1> and <IMAGE>?", "x")}, UNKNOWN_MARK),
        ({"pic": "blue.png", "messages": spoken("?", "x")}, UNNAMED),
        ({"pic": [{"path": "blue.png"}], "messages": spoken("<image>?", "x")}, UNNAMED),
        ({"image": "blue.png", "messages": [{"role": "user", "content": 2}]}, MALFORMED),
        ({"image": "blue.png", "prompt": "?", "completion": "x", "kto_tag": "False"}, WRONG),
        ({"image": "blue.png", "prompt": "?", "rejected": "x"}, UNCHOSEN),
        ({"image": "blue.png", "prompt": "?", "chosen": "", "rejected": "x"}, MALFORMED),
        ({"image": "blue.png", "messages": spoken("Draw it", "<image>Here it is")}, DRAWN),
        ({"image": "blue.png"}, "no text"),
        ({"messages": []}, "no text"),
    ],
)
def test_what_cannot_be_a_record_is_counted(folder, row, reason):
    good = {"image": "blue.png", "messages": spoken("Which?", "blue")}
    data = Chat(write_jsonl(folder / "t.jsonl", [row, good]))
    assert len(data) == 1
    assert list(data.skips.counts()) == [reason]


def test_what_is_beside_a_conversation_and_says_nothing_of_it_changes_nothing(folder):
    asked = {"image": "blue.png", "messages": spoken("What is <video>?", "an HTML <bbox>")}
    for beside in (
        {"videos": [], "audios": None, "audio": ""},
        {"objects": None},
        {"label": 0},
        {"label": "a false colour"},
    ):
        data = Chat(write_json(folder / "t.json", [{**asked, **beside}]))
        assert shown(data[0]) == (["blue"], "What is <video>?", "an HTML <bbox>"), beside


def test_a_picture_of_an_answer_is_shown_from_the_next_turn_on(folder):
    turns = said("<image>Which?", "red", "Draw it blue", "<image>Here", "Sure?", "yes")
    row = {"id": "a", "image": TWO[::-1], "conversations": turns}
    data = Chat(write_json(folder / "t.json", [row]))
    assert data.skips.skipped == {"a/1": DRAWN}
    assert list(map(shown, data)) == [
        (["red"], "Which?", "red"),
        (["red", "blue"], "␝Which?␟red␞Draw it blue␟␝Here␞Sure?", "yes"),
    ]
    alone = Chat(folder / "t.json", turns="split")
    assert [row["question"] for row in alone] == ["Which?", "␝␝Sure?"]


@pytest.mark.parametrize("mark", [{"loss": False}, {"weight": 0}])
def test_an_answer_that_is_not_to_be_learned_is_read_by_later_turns(folder, mark):
    turns = spoken("Which?", "green", "Sure?", "no, blue")
    turns[1] |= mark
    turns[3] |= {name: True for name in mark}
    row = {"id": "a", "image": "blue.png", "messages": turns}
    data = Chat(write_json(folder / "t.json", [row]))
    assert list(map(shown, data)) == [(["blue"], "Which?␟green␞Sure?", "no, blue")]
    assert data.skips.skipped == {"a/0": UNLEARNED}


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "saved"])
def test_parts_of_a_split_share_no_row(folder, kind):
    rows = [{"image": "blue.png", "query": f"q{n}", "response": "x"} for n in range(20)]
    path = folder / f"t.{kind}"
    if kind == "json":
        write_json(path, rows)
    elif kind == "jsonl":
        write_jsonl(path, rows)
    elif kind == "csv":
        lines = [",".join(row.values()) for row in rows]
        write(path, "\n".join(["image,query,response", *lines]))
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).save_to_disk(path)

    def asked(split):
        return [row["question"] for row in Chat(path, split=split, images=folder)]

    every = [f"q{n}" for n in range(20)]
    assert asked("train") == every
    assert (asked("train[:90%]"), asked("train[90%:]")) == (every[:18], every[18:])
    assert asked("train[:1]+train[19:]") == [every[0], every[19]]
    with pytest.raises(UserError, match=r"train\[:x\]"):
        asked("train[:x]")
    if kind not in ("parquet", "saved"):  # these take their one split by any name
        with pytest.raises(UserError, match=rf"'nonsense'.*t\.{kind} is one file .*train\[:90%\]"):
            asked("nonsense[:10]")


def test_speakers_of_another_name_and_captions(folder):
    rows = [
        {"image": "red ü.png", "conversations": said("Which?", "red", who=("Q", "A"))},
        {"image": "blue.png", "prompt": "a blue square"},
    ]
    source = {"type": "chat", "path": str(write_json(folder / "t.json", rows))}
    data = build_dataset([{**source, "tags": {"user": "Q", "assistant": "A"}}])
    assert (data[0]["answer"], data[1]["caption"], data[1]["question"]) == (
        "red",
        "a blue square",
        None,
    )
    with pytest.raises(UserError, match="source 0.tags"):
        build_dataset([{**source, "tags": {"robot": "A"}}])


def test_a_file_that_is_no_conversation_is_one_line(folder):
    with pytest.raises(UserError, match=r"t\.jsonl:2 is not valid json"):
        Chat(write(folder / "t.jsonl", '{"messages": []}\n{"mess'))
    with pytest.raises(UserError, match="does not exist here"):
        Chat(folder / "gone.json")
    with pytest.raises(UserError, match="no usable row .*1 no text"):
        Chat(write_json(folder / "t.json", [{"title": "x"}]))
