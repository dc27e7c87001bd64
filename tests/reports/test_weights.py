"""Weights are known by a digest, which is computed once for a large file."""

from __future__ import annotations

import os

import pytest

from tests.data.files import write
from unigame.errors import UserError
from unigame.reports import weights as module
from unigame.reports.weights import file_sha256, folder_sha256


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
