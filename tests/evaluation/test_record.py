"""The record names the model by its weights, and files are replaced whole."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from tests.data.files import write, write_json
from tests.evaluation.fakes import FakeBackbone
from unigame.errors import UserError
from unigame.evaluation.record import (
    check_run,
    differences,
    model_entry,
    open_record,
    weights_sha256,
)
from unigame.evaluation.record import (
    write_json as write_whole,
)
from unigame.reports.records import FORMAT
from unigame.reports.weights import folder_sha256


def test_weights_in_memory_have_a_hash_of_names_types_and_values():
    model = nn.Linear(2, 2)
    first = weights_sha256(model)
    assert weights_sha256(model) == first
    with torch.no_grad():
        model.bias[0] += 1
    assert weights_sha256(model) != first
    half = nn.Linear(2, 2).bfloat16()
    assert len(weights_sha256(half)) == 64


def test_the_model_entry_names_model_and_adapter(tmp_path):
    write(tmp_path / "m" / "model.safetensors", b"m")
    write(tmp_path / "a" / "adapter_model.safetensors", b"a")
    entry = model_entry(FakeBackbone(), id="m", folder=tmp_path / "m", adapter=tmp_path / "a")
    assert entry["family"] == "fake" and entry["dtype"] == "float32" and entry["id"] == "m"
    assert entry["sha256"] == folder_sha256(tmp_path / "m")
    assert entry["adapter"]["sha256"] == folder_sha256(tmp_path / "a")
    assert model_entry(FakeBackbone())["adapter"] is None


def test_a_record_moved_to_another_place_is_still_the_same_models(tmp_path):
    model = {"id": "m", "family": "f", "sha256": "1", "adapter": None, "dtype": "float32"}
    path = tmp_path / "results.json"
    write_whole(path, open_record(path, model))
    assert open_record(path, {**model, "id": "/elsewhere/m"})["format"] == FORMAT
    adapter = {"id": "a", "sha256": "2"}
    said = "another model: of 'm' in float32, and this is 'm' with adapter 'a' in float32; give"
    with pytest.raises(UserError, match=said):
        open_record(path, {**model, "adapter": adapter})
    said = "of 'm' in float32, and this is 'n' in float32, nf4; give another --output"
    with pytest.raises(UserError, match=said):
        open_record(path, {**model, "id": "n", "sha256": "2", "quantization": "nf4"})
    with pytest.raises(UserError, match="of 'm' in float32 before: sha256 was \"1\" and is now"):
        open_record(path, {**model, "sha256": "2"})  # trained anew in its place


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no record"), ('{"arms": {}}', "is of format None"), ("[]", "is of format 'list'")],
)
def test_a_file_that_is_no_record_is_not_overwritten(tmp_path, content, message):
    path = write(tmp_path / "results.json", content)
    with pytest.raises(UserError, match=message):
        open_record(path, {"sha256": "1", "dtype": "float32"})
    assert path.read_text() == content


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_json(tmp_path / "r.json", {"old": 1})
    with pytest.raises(TypeError):
        write_whole(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_a_kill_before_the_last_moment_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_json(tmp_path / "r.json", {"old": 1})

    def killed(*_):
        assert json.loads(path.read_text()) == {"old": 1}
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}


def test_differences_name_the_place():
    before = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert differences(before, {"a": {"b": 1, "c": 3}, "d": [1], "e": "x"}) == [
        "a.c was 2 and is now 3",
        'e was null and is now "x"',
    ]
    assert differences(before, json.loads(json.dumps(before))) == []


def test_run_settings_are_noted_once_and_then_checked(tmp_path):
    settings = {"seed": 0, "stop": ("a",)}
    check_run(tmp_path, settings, "do this")
    check_run(tmp_path, settings, "do this")
    with pytest.raises(UserError, match="seed was 0 and is now 1; do this"):
        check_run(tmp_path, {**settings, "seed": 1}, "do this")
    write(tmp_path / "run.json", "{")
    with pytest.raises(UserError, match="run.json is damaged; do this"):
        check_run(tmp_path, settings, "do this")


@pytest.mark.parametrize(
    "content",
    ["[" * 200_000, "\udcff", '{"format": "unigame-evaluation/1"}', "{}", '{"format": NaN}']
    + [
        json.dumps({"format": FORMAT, "model": model, "benchmarks": benchmarks})
        for model, benchmarks in [
            (3, {}),
            ({"sha256": "1"}, {}),
            ({"sha256": "1", "dtype": "float32", "adapter": "a"}, {}),
            ({"sha256": "1", "dtype": "float32"}, []),
            ({"sha256": "1", "dtype": "float32"}, {"pope": 3}),
            ({"sha256": "1", "dtype": "float32"}, {"pope": {"metrics": {}}}),
        ]
    ],
)
def test_a_damaged_record_is_one_line_and_not_added_to(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    model = {"id": "m", "family": "f", "sha256": "1", "adapter": None, "dtype": "float32"}
    with pytest.raises(UserError, match="results.json") as caught:
        open_record(path, model)
    assert "\n" not in str(caught.value)


def test_half_a_character_is_written_as_json_has_it(tmp_path):
    write_whole(tmp_path / "a.json", {"half \ud800": "\udfff"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"half \ud800": "\udfff"}
