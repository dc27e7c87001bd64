"""Webdataset shards, map-style."""

import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.data.files import BLUE, GREEN, RED, color_of, jpeg, png, write, write_tar
from unigame.data import WebDataset, open_files
from unigame.data.paths import expand_shards
from unigame.errors import UserError


def cc3m(root, shards=2):
    """Shards as img2dataset writes them: jpg + txt + json, named by number."""
    colors = {"red": RED, "green": GREEN, "blue": BLUE}
    for shard in range(shards):
        members = {}
        for number, (word, color) in enumerate(colors.items()):
            key = f"{shard:05d}{number:04d}"
            members[f"{key}.jpg"] = jpeg(color)
            members[f"{key}.txt"] = f"{word} picture of shard {shard}"
            members[f"{key}.json"] = json.dumps({"url": "u", "caption": "x", "status": "success"})
        write_tar(root / f"{shard:05d}.tar", members)
    return root


def test_captions_and_pictures_belong_together(tmp_path):
    data = WebDataset(cc3m(tmp_path))
    assert len(data) == 6
    for index in (5, 0, 3, 1, 4, 2):  # in any order
        record = data[index]
        assert record["caption"].split()[0] == color_of(record["image"])
        assert record["question"] is None
    assert data[4]["id"] == "00001.tar/000010001"
    assert data[4]["caption"].endswith("shard 1")
    again = pickle.loads(pickle.dumps(data))  # as a spawned worker gets it
    assert color_of(again[2]["image"]) == "blue"


def test_questions_in_json(tmp_path):
    shard = write_tar(
        tmp_path / "vqa.tar",
        {
            "d/one.png": png(RED),
            "d/one.json": json.dumps({"question": "Color?", "answers": ["red", "pink", "red"]}),
            "d/two.webp.ignored": b"x",
            "d/two.png": png(BLUE),
            "d/two.json": json.dumps({"q": "Color?", "a": "blue", "caption": "sky"}),
        },
    )
    one = WebDataset(shard)[0]
    assert (one["question"], one["answer"]) == ("Color?", "red")
    assert one["answers"] == ["red", "pink", "red"]
    two = WebDataset(shard, columns={"question": "q", "answer": "a"})[1]
    assert (two["question"], two["answer"], two["caption"]) == ("Color?", "blue", "sky")
    assert color_of(two["image"]) == "blue"
    with pytest.raises(UserError, match="unknown field 'title'"):
        WebDataset(shard, columns={"title": "q"})
    with pytest.raises(UserError, match="columns must map"):
        WebDataset(shard, columns=["q"])


def recaptioned(root):
    """The crawler's text as txt, a better caption in the json, of the second sample none."""
    captions = [{"caption": "raw", "recaption": "a red square"}, {"caption": "raw"}]
    members = {}
    for number, cells in enumerate(captions):
        members[f"{number}.png"] = png(RED)
        members[f"{number}.txt"] = "IMG_1234 buy now"
        members[f"{number}.json"] = json.dumps(cells)
    return write_tar(root / "s.tar", members)


def test_a_caption_that_is_named_is_taken_before_a_txt(tmp_path):
    shard = recaptioned(tmp_path)
    raw = "IMG_1234 buy now"
    for columns, captions in (
        (None, [raw, raw]),
        ({"caption": "recaption"}, ["a red square", raw]),
        ({"caption": "txt", "image": "png"}, [raw, raw]),
    ):
        assert [row["caption"] for row in WebDataset(shard, columns=columns)] == captions


def test_a_key_that_no_sample_has_is_an_error(tmp_path, caplog):
    columns, said = {"caption": "recapton"}, "'recapton' for the caption; it has caption, recaption"
    with pytest.raises(UserError, match=said):
        WebDataset(recaptioned(tmp_path), columns=columns)
    WebDataset(recaptioned(tmp_path), columns=columns, limit=1)  # a later sample may have it
    assert said in caplog.text and "only 1 rows were read" in caplog.text
    texts = write_tar(tmp_path / "t.tar", {"a.json": json.dumps({"caption": "no picture"})})
    with pytest.raises(UserError, match="no usable row .*missing image"):
        WebDataset(texts, columns=columns)


def test_incomplete_samples_are_counted_and_shift_nothing(tmp_path):
    shard = write_tar(
        tmp_path / "s.tar",
        {
            "a.txt": "failed download",
            "b.jpg": jpeg(RED),
            "b.txt": "red",
            "c.jpg": jpeg(GREEN),
            "d.jpg": jpeg(GREEN),
            "d.json": "{broken",
            "e.jpg": jpeg(GREEN),
            "e.json": json.dumps({"question": "no answer?"}),
            "f.jpg": jpeg(BLUE)[:300],
            "f.txt": "cut",
            "g.jpg": jpeg(BLUE),
            "g.txt": "blue",
        },
    )
    data = WebDataset(shard, verify="decode")
    assert [(data[i]["caption"], color_of(data[i]["image"])) for i in range(len(data))] == [
        ("red", "red"),
        ("blue", "blue"),
    ]
    assert data.skips.skipped == {
        "s.tar/a": "missing image",
        "s.tar/c": "no text",
        "s.tar/d": "malformed text or json",
        "s.tar/e": "no text",
        "s.tar/f": "corrupt image",
    }


def test_shard_patterns(tmp_path):
    cc3m(tmp_path, shards=12)
    names = [f"{n:05d}.tar" for n in range(12)]
    assert [path.name for path in expand_shards(tmp_path)] == names
    assert [path.name for path in expand_shards(f"{tmp_path}/0000*.tar")] == names[:10]
    assert [path.name for path in expand_shards(f"{tmp_path}/{{00009..00011}}.tar")] == names[9:]
    assert [path.name for path in expand_shards(f"{tmp_path}/0000{{3,1}}.tar")] == [
        names[3],
        names[1],
    ]
    both = [tmp_path / names[0], f"{tmp_path}/0000{{0..1}}.tar"]
    assert [path.name for path in expand_shards(both)] == names[:2]
    assert len(expand_shards(f"{tmp_path}/000{{0..1}}{{0..1}}.tar")) == 4
    with pytest.raises(UserError, match=r"no tar matches .*00012\.tar"):
        expand_shards(f"{tmp_path}/{{00011..00012}}.tar")
    with pytest.raises(UserError, match="empty range"):
        expand_shards(f"{tmp_path}/{{5..1}}.tar")
    with pytest.raises(UserError, match="must name tars"):
        expand_shards([])


def test_compressed_cut_and_foreign_files_are_refused(tmp_path):
    cc3m(tmp_path, shards=1)
    with tarfile.open(tmp_path / "z.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "00000.tar", "x.jpg")
    with pytest.raises(UserError, match="not a plain, complete tar"):
        WebDataset(tmp_path / "z.tar.gz")
    whole = (tmp_path / "00000.tar").read_bytes()
    with pytest.raises(UserError, match="not a plain, complete tar"):
        WebDataset(write(tmp_path / "cut.tar", whole[: 512 + 100]))
    with pytest.raises(UserError, match="not a plain, complete tar"):
        WebDataset(write(tmp_path / "html.tar", "<html>" * 200))
    with pytest.raises(UserError, match="no usable row"):
        WebDataset(write_tar(tmp_path / "empty.tar", {}))


def test_limit_leaves_later_shards_closed(tmp_path):
    cc3m(tmp_path, shards=1)
    write(tmp_path / "99999.tar", "not a tar")
    assert len(WebDataset(tmp_path, limit=3)) == 3
    with pytest.raises(UserError, match="99999.tar"):
        WebDataset(tmp_path, limit=4)


def test_threads_read_more_shards_than_stay_open(tmp_path):
    data = WebDataset(cc3m(tmp_path, shards=open_files.MOST + 3))
    rows = [*range(len(data)), *range(0, len(data), 3)]
    with ThreadPoolExecutor(3) as pool:
        words = list(pool.map(lambda i: color_of(data[i]["image"]), rows))
    assert words == [data._rows[i].caption.split()[0] for i in rows]
    assert read_open(data) <= open_files.MOST


def read_open(data):
    """How many shards this thread has open after it read all rows."""
    for index in range(len(data)):
        data[index]
    return len(open_files._mine.files)
