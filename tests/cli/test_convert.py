"""``unigame convert``: what it tells, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_janus_files import save_original, tiny_shapes
from tests.tiny_janus_original import make_original
from unigame.backbones.janus import convert as janus_convert
from unigame.cli import main


@pytest.fixture(autouse=True)
def small_shapes() -> Iterator[None]:
    with tiny_shapes():
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_original(make_original(), tmp_path / "original", layout="bin")


def test_the_command_says_what_it_did_and_what_to_do_next(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["convert", str(source), str(output)]) == 0
    told = capsys.readouterr().out
    for words in (
        f"Converted {source} to {output}: 0.9 M parameters in 254 tensors, float32; every value",
        "Left out: SigLIP's pooling head, which Janus does not run (5 tensors).",
        "(1 tensor).",
        f"--model {output}",
    ):
        assert words in told
    assert "Note:" not in told


def test_codes_of_other_lengths_are_noted(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = source / "pytorch_model.bin"
    weights = torch.load(file, weights_only=True)
    weights["gen_vision_model.quantize.embedding.weight"][0] *= 1.5
    torch.save(weights, file)
    assert main(["convert", str(source), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    told = capsys.readouterr().out
    assert "vectors are 1.000 to 1.500 long" in told
    assert "rounded to float32" in told


def test_ctrl_c_says_that_nothing_was_written(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(janus_convert, "save_file", stop)
    output = source.parent / "out"
    assert main(["convert", str(source), str(output)]) == 130
    assert f"{output} was not written. Run the same" in capsys.readouterr().err
    assert not output.exists()


def test_what_does_not_fit_is_one_line(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "preprocessor_config.json").unlink()
    assert main(["convert", str(source), str(source.parent / "out")]) == 2
    error = capsys.readouterr().err
    assert "no preprocessor_config.json" in error and error.count("\n") == 1
