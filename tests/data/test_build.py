"""Recipes' sources: good ones open, bad ones name the value and the fix."""

import sys
import types
from collections import Counter

import pytest

from tests.data.files import RED, png, write, write_tar, write_vqav2
from unigame.data import VQA, Mixture, build_dataset
from unigame.errors import UserError


@pytest.fixture
def captions(tmp_path):
    for number in range(4):
        write(tmp_path / f"c/{number}.png", png(RED))
        write(tmp_path / f"c/{number}.txt", f"caption {number}")
    return {"type": "captions", "path": str(tmp_path / "c")}


@pytest.fixture
def vqa(tmp_path):
    return {"type": "vqa", **{k: str(v) for k, v in write_vqav2(tmp_path / "v").items()}}


def test_one_source_is_the_reader_itself(vqa):
    data = build_dataset([{**vqa, "weight": 3}])
    assert isinstance(data, VQA)
    assert len(data) == 3
    assert len(build_dataset([vqa], limit=2)) == 2
    assert len(build_dataset([{**vqa, "limit": 1}], limit=2)) == 1


def test_weighted_sources_are_mixed(vqa, captions):
    data = build_dataset([{**vqa, "weight": 3}, {**captions, "weight": 1}], seed=4, limit=4)
    assert isinstance(data, Mixture)
    assert data.seed == 4
    rows = [data[i] for i in range(len(data))]
    assert Counter(row["caption"] is None for row in rows) == {True: 3, False: 1}
    assert data.skips.summary() == "7 rows, 0 skipped"


def test_unweighted_sources_are_joined(vqa, captions):
    data = build_dataset([vqa, {**captions, "limit": 2}])
    assert sorted(data[i]["id"] for i in range(len(data))) == [
        "0:25000",
        "0:9000",
        "0:9001",
        "1:0",
        "1:1",
    ]


def test_webdataset_and_hf_types(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.png": png(), "a.txt": "red"})
    assert len(build_dataset([{"type": "webdataset", "path": str(tmp_path / "0.tar")}])) == 1
    with pytest.raises(UserError, match=r"source 0 \(hf\).*hub: true"):
        build_dataset([{"type": "hf", "path": "someone/something"}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "parquet"}, "unknown type 'parquet'; choose from vqa, captions"),
        ({"typ": "vqa"}, "unknown key 'typ'; did you mean 'type'"),
        ({"verfy": "exists"}, "unknown key 'verfy'; did you mean 'verify'"),
        ({"split": "train"}, "unknown key 'split'"),
        ({"path": "/nowhere/at/all"}, "/nowhere/at/all does not exist"),
        ({"path": 7}, "path: 7 does not exist"),
        ({"limit": "ten"}, "limit='ten'"),
        ({"limit": 0}, "limit=0"),
        ({"verify": True}, "verify=True"),
        ({"columns": "image"}, "columns"),
    ],
)
def test_bad_sources_are_named(captions, change, message):
    with pytest.raises(UserError, match=message) as caught:
        build_dataset([{**captions, **change}])
    assert "source 0" in str(caught.value)


@pytest.mark.parametrize("sources", [[], None, "vqa", {"type": "vqa"}, 5])
def test_data_must_be_a_list_of_sources(sources):
    with pytest.raises(UserError, match="must be a list"):
        build_dataset(sources)


@pytest.mark.parametrize("source", [{}, "vqa", {"path": "x"}, None])
def test_a_source_needs_a_type(source):
    with pytest.raises(UserError, match="source 0 needs a type"):
        build_dataset([source])


def test_missing_required_key_and_missing_weights(captions, vqa):
    with pytest.raises(UserError, match=r"source 1 \(captions\) needs path:"):
        build_dataset([vqa, {"type": "captions"}])
    with pytest.raises(UserError, match=r"source 1 \(captions\) has no weight"):
        build_dataset([{**vqa, "weight": 1}, captions])
    with pytest.raises(UserError, match="source 1.weight='much'"):
        build_dataset([{**vqa, "weight": 1}, {**captions, "weight": "much"}])


def test_all_keys_are_checked_before_any_data_is_read(captions):
    """The second source's typo is found although the first one's path is wrong too."""
    with pytest.raises(UserError, match="source 1 .*unknown key 'lmit'"):
        build_dataset([{**captions, "path": "/nowhere"}, {**captions, "lmit": 3}])


def test_synthetic_is_delegated(monkeypatch):
    made = []

    class SyntheticDataset:
        def __init__(self, split, size, seed):
            made.append((split, size, seed))
            self.size = size

        def __len__(self):
            return self.size

    fake = types.SimpleNamespace(SyntheticDataset=SyntheticDataset)
    monkeypatch.setitem(sys.modules, "unigame.synthetic", fake)
    assert len(build_dataset([{"type": "synthetic", "split": "ood", "size": 50}], seed=7)) == 50
    build_dataset([{"type": "synthetic", "size": 50, "seed": 1, "limit": 9}], limit=20)
    assert made == [("ood", 50, 7), ("train", 9, 1)]
    with pytest.raises(UserError, match="size=0"):
        build_dataset([{"type": "synthetic", "size": 0}])
