"""Shards with duplicates, files of macOS, links, odd names and damage: kept right, or counted."""

import io
import json
import tarfile

import pytest

from tests.data.files import BLUE, GREEN, RED, color_of, png, write
from unigame.data import Captions, WebDataset
from unigame.data.tars import USUAL_END
from unigame.errors import UserError

JUNK = b"\0\5\x16\7\0\2\0\0Mac OS X        \xff\xfe"


def tar_of(path, members, **options):
    """A tar of (name, bytes or text or TarInfo): names may repeat."""
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
                continue
            blob = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    return path


def rows_of(data):
    return [(data[i]["caption"], color_of(data[i]["image"])) for i in range(len(data))]


R, G, B = png(RED), png(GREEN), png(BLUE)
AFTER = [("b.png", B), ("b.txt", "blue")]


@pytest.mark.parametrize(
    ("members", "kept"),
    [
        ([("a.png", R), ("a.txt", "red"), ("a.png", G)], ["red"]),
        ([("a.png", R), ("a.txt", "red"), ("a.png", G), ("a.txt", "green")], ["red"]),
        ([("a.txt", "red"), ("a.png", R), ("a.png", G)], ["red"]),
        ([("a.png", R), ("a.png", G), ("a.txt", "whose?")], []),
        ([("a.png", R), ("a.png", G), ("a.txt", "red"), ("a.txt", "green")], []),
        ([("a.png", R), ("a.PNG", G), ("a.txt", "whose?")], []),
        ([("a.png", R), ("a.txt", "red"), ("a.txt", "crimson")], ["red"]),
    ],
)
def test_a_picture_never_gets_another_ones_text_and_what_is_lost_is_counted(
    tmp_path, members, kept
):
    data = WebDataset(tar_of(tmp_path / "s.tar", [*members, *AFTER]))
    assert rows_of(data) == [(word, word) for word in [*kept, "blue"]]
    assert "duplicate member" in data.skips.counts()
    assert any(id.startswith("s.tar/a") for id in data.skips.skipped)


def test_two_pictures_of_one_name_are_counted(tmp_path):
    members = [("a.jpg", R), ("a.png", G), ("a.txt", "red"), *AFTER]
    data = WebDataset(tar_of(tmp_path / "s.tar", members))
    assert rows_of(data) == [("red", "red"), ("blue", "blue")]
    assert data.skips.skipped == {"s.tar/a.png": "second picture of one name"}
    for name, content in (("c.jpg", R), ("c.png", G), ("c.txt", b"red"), ("d.PNG", B)):
        write(tmp_path / "f" / name, content)
    write(tmp_path / "f/d.txt", "blue")
    folder = Captions(tmp_path / "f")
    assert rows_of(folder) == [("red", "red"), ("blue", "blue")]
    assert folder.skips.skipped == {"c.png": "second picture of one name"}
    write(tmp_path / "f/c.TXT", "green")
    with_two = Captions(tmp_path / "f")
    assert with_two.skips.skipped["c"] == "two captions of one name"


def test_masks_are_parts_but_numbered_pictures_with_texts_are_samples(tmp_path):
    members = [("a.png", R), ("a.seg.png", G), ("a.txt", "red"), *AFTER]
    assert WebDataset(tar_of(tmp_path / "m.tar", members)).skips.skipped == {}
    members = [("a.png", R), ("a.2.png", G), ("a.txt", "red"), ("a.2.txt", "green")]
    assert list(WebDataset(tar_of(tmp_path / "n.tar", members)).skips.skipped) == ["n.tar/a.2.png"]


def test_names_with_dots_long_names_and_odd_letters(tmp_path):
    long = "d" * 90 + "/" + "photo ü " * 14
    members = [
        ("photo.v1.png", R),
        ("photo.v1.txt", "red"),
        ("photo.v2.PNG", G),
        ("photo.v2.txt", "green"),
        (f"{long}.png", B),
        (f"{long}.txt", "blue"),
    ]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = WebDataset(tar_of(tmp_path / "s.tar", members, format=kind))
        assert rows_of(data) == [(word, word) for word in ("red", "green", "blue")]
        assert data.skips.skipped == {}


def test_names_that_are_not_utf8_can_be_printed(tmp_path):
    members = [("\udcff.png", R), ("\udcff.txt", "red"), ("\udcfe.png", G)]
    data = WebDataset(tar_of(tmp_path / "s.tar", members, format=tarfile.GNU_FORMAT))
    assert rows_of(data) == [("red", "red")]
    f"{data[0]['id']} {data.skips.summary()}".encode()


def test_files_of_macos_are_passed_over(tmp_path):
    members = [
        ("._a.png", JUNK),
        ("a.png", R),
        ("./._a.txt", JUNK),
        ("a.txt", "red"),
        ("__MACOSX/a.png", JUNK),
        (".DS_Store", JUNK),
        *AFTER,
    ]
    data = WebDataset(tar_of(tmp_path / "mac.tar", members))
    assert rows_of(data) == [("red", "red"), ("blue", "blue")]
    assert data.skips.skipped == {}
    for name, content in members:
        write(tmp_path / "f" / name, content)
    folder = Captions(tmp_path / "f")
    assert rows_of(folder) == [("red", "red"), ("blue", "blue")]
    assert folder.skips.skipped == {}


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


def test_hard_links_are_followed_and_other_links_counted(tmp_path):
    members = [
        ("a.png", R),
        ("a.txt", "red"),
        link("b.png", "a.png", tarfile.LNKTYPE),
        ("b.txt", "red"),
        link("c.png", "a.png", tarfile.SYMTYPE),
        ("c.txt", "red"),
        link("d.png", "gone.png", tarfile.LNKTYPE),
        ("d.txt", "red"),
    ]
    data = WebDataset(tar_of(tmp_path / "s.tar", members))
    assert rows_of(data) == [("red", "red")] * 2
    assert data.skips.skipped == {
        "s.tar/c": "member is no plain file",
        "s.tar/d": "member is no plain file",
    }


def test_empty_pictures_are_counted(tmp_path):
    data = WebDataset(tar_of(tmp_path / "s.tar", [("a.png", b""), ("a.txt", "?"), *AFTER]))
    assert data.skips.skipped == {"s.tar/a": "corrupt image"}
    for name, content in (("a.png", b""), ("a.txt", b"?"), ("b.png", B), ("b.txt", b"blue")):
        write(tmp_path / "f" / name, content)
    assert Captions(tmp_path / "f").skips.skipped == {"a": "corrupt image"}


@pytest.fixture
def whole(tmp_path):
    members = [(f"{i:03d}.{end}", R if end == "png" else "red") for i in range(20) for end in
               ("png", "txt")]  # fmt: skip
    path = tar_of(tmp_path / "x.tar", members)
    with tarfile.open(path) as tar:
        offsets = [member.offset for member in tar]
    return path, path.read_bytes(), offsets


def damage(kind, data, offsets):
    at = offsets[10]
    if kind == "flipped bit in a header":
        return data[: at + 5] + bytes([data[at + 5] ^ 1]) + data[at + 6 :]
    if kind == "cut in a header":
        return data[: at + 100]
    if kind == "cut at a member":
        return data[:at]
    if kind == "cut in a picture":
        return data[: at + 512 + 20]
    if kind == "zeroed header":
        return data[:at] + bytes(512) + data[at + 512 :]
    if kind == "another tar behind it":
        return data + data
    return data + b"<html>"


KINDS = [
    "flipped bit in a header",
    "cut in a header",
    "cut at a member",
    "cut in a picture",
    "zeroed header",
    "another tar behind it",
    "something behind it",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_shard_does_not_lose_its_rest_in_silence(whole, kind):
    path, data, offsets = whole
    assert len(WebDataset(path)) == 20
    path.write_bytes(damage(kind, data, offsets))
    with pytest.raises(UserError, match=r"x\.tar is (damaged: \d+ of its \d+ bytes were not read|"
                       "not a plain, complete tar)"):  # fmt: skip
        WebDataset(path)


def test_the_bytes_that_were_not_read_are_said(whole):
    path, data, offsets = whole
    path.write_bytes(damage("zeroed header", data, offsets))
    with pytest.raises(UserError, match=f"{len(data) - offsets[10]} of its {len(data)} bytes"):
        WebDataset(path)


def test_a_rest_of_zeros_is_said(whole):
    """A download into a file of full length that stopped: it ends in zeros, as a tar does."""
    path, data, offsets = whole
    end = len(data) - offsets[10]
    assert end > USUAL_END
    path.write_bytes(data[: offsets[10]] + bytes(end))
    assert WebDataset(path).skips.skipped == {"x.tar": "shard ends in zeros"}


def test_usual_ends_are_whole(whole):
    path, data, offsets = whole
    end = offsets[-1] + 2 * 512
    for zeros in (512, 1024, 10_240):
        path.write_bytes(data[:end] + bytes(zeros))
        data_set = WebDataset(path)
        assert (len(data_set), data_set.skips.skipped) == (20, {})


def test_json_that_no_one_can_read_costs_its_sample(tmp_path):
    members = [
        ("a.png", R),
        ("a.json", '{"caption": ' + "[" * 100_000),
        ("b.png", R),
        ("b.json", '{"caption": "\\ud800"}'),
        ("c.png", R),
        ("c.txt", b"\xff\xfe\xfa"),
        ("d.png", G),
        ("d.json", json.dumps({"caption": "green \U0001f600"})),
    ]
    data = WebDataset(tar_of(tmp_path / "s.tar", members))
    assert data[0]["caption"] == "green \U0001f600"
    assert set(data.skips.skipped.values()) == {"malformed text or json"}
    assert len(data.skips.skipped) == 3


@pytest.mark.parametrize(
    "braces", ["{0..99999999999}", "{0..9999}{0..9999}", "{a,b}" * 60, "{0.." + "9" * 5000 + "}"]
)
def test_a_brace_pattern_that_names_too_much_is_refused_at_once(tmp_path, braces):
    with pytest.raises(UserError, match="more than 100000 tars"):
        WebDataset(f"{tmp_path}/x-{braces}.tar")


def test_a_name_that_no_file_can_have_is_one_line():
    with pytest.raises(UserError, match="cannot be looked up: File name too long"):
        WebDataset("{" * 2000)
