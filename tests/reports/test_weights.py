"""Weights are known by a digest, which is computed once for a large file."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.data.files import write, write_json
from unigame.errors import UserError
from unigame.reports import weights as module
from unigame.reports.weights import file_sha256, folder_sha256, setup_sha256


def test_a_folder_is_known_by_its_weights_and_their_names_only(tmp_path):
    for name in "ab":
        write(tmp_path / name / "model.safetensors", b"weights")
        write(tmp_path / name / "config.json", name)
    first = folder_sha256(tmp_path / "a")
    assert first == folder_sha256(tmp_path / "b") and len(first) == 64
    write(tmp_path / "b" / "model-2.safetensors", b"")
    assert folder_sha256(tmp_path / "b") != first
    write(tmp_path / "a" / "model.safetensors", b"weightS")
    assert folder_sha256(tmp_path / "a") != first
    with pytest.raises(UserError, match="holds no weights"):
        folder_sha256(tmp_path)


def test_what_weights_are_read_with_is_known_too(tmp_path):
    for name in "ab":
        folder = tmp_path / name
        write(folder / "model.safetensors", b"weights")
        write_json(folder / "config.json", {"model_type": "m", "_name_or_path": name})
        write_json(folder / "adapter_config.json", {"r": 4, "base_model_name_or_path": name})
        write_json(folder / "trainer_state.json", {"step": name})  # of no answer
    first = setup_sha256(tmp_path / "a")
    assert first == setup_sha256(tmp_path / "b") and len(first) == 64
    changes = {
        "adapter_config.json": json.dumps({"r": 4, "lora_alpha": 400}),
        "processor_config.json": json.dumps({"image_mean": [0.2]}),
        "chat_template.jinja": "{{ messages }}",
    }
    for name, content in changes.items():
        write(tmp_path / "b" / name, content)
        assert setup_sha256(tmp_path / "b") != first, name
        shutil.copytree(tmp_path / "a", tmp_path / "b", dirs_exist_ok=True)
        if not (tmp_path / "a" / name).exists():
            (tmp_path / "b" / name).unlink()
        assert setup_sha256(tmp_path / "b") == first


def test_a_long_text_in_a_configuration_is_no_folder(tmp_path):
    for value in ("{% x %}" * 100, "~nobody/x", "a\0b"):
        write_json(tmp_path / "config.json", {"language": value})
        write_json(tmp_path / "tokenizer_config.json", {"chat_template": value})
        assert len(setup_sha256(tmp_path)) == 64


def test_a_folder_that_a_configuration_names_counts_as_what_lies_in_it(tmp_path):
    def composed(name, weights):
        part = tmp_path / f"part-{name}"
        write(part / "text" / "model.safetensors", weights)
        write_json(part / "config.json", {})
        write_json(tmp_path / name / "config.json", {"language": str(part), "denoiser": "o/n"})
        return setup_sha256(tmp_path / name)

    assert composed("a", b"one") == composed("b", b"one") != composed("c", b"two")


def test_a_large_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_REMEMBERED", 4)
    read = []
    digest = module._digest
    monkeypatch.setattr(module, "_digest", lambda path: read.append(path) or digest(path))
    file = write(tmp_path / "model.safetensors", b"weights")
    first = file_sha256(file)
    assert file_sha256(file) == first and len(read) == 1
    write(file, b"WEIGHTS")
    os.utime(file, ns=(1, 1))
    assert file_sha256(file) != first and len(read) == 2
    small = write(tmp_path / "s.safetensors", b"w")
    assert file_sha256(small) == file_sha256(small) and len(read) == 4


def test_nowhere_to_remember_a_hash_is_no_error(tmp_path, monkeypatch):
    blocked = write(tmp_path / "file", "no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(module, "_REMEMBERED", 0)
    file = write(tmp_path / "model.safetensors", b"weights")
    assert file_sha256(file) == file_sha256(file)
