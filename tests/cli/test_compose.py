"""``unigame compose``: parts in, a folder out that loads; what does not fit in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_composed import shared_llm_dit
from unigame.backbones import load_backbone
from unigame.backbones.composed.model import ComposedBackbone
from unigame.cli import main


def parts() -> list[str]:
    root = shared_llm_dit().parent
    named = {"language": "language", "denoiser": "pipeline", "vision-encoder": "encoder"}
    return [word for key, name in named.items() for word in (f"--{key}", str(root / name))]


def test_a_composed_folder_loads_with_the_given_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    settings = "--image-size 16 --num-queries 3 --strength 0.4 --draw-steps 2".split()
    assert main(["compose", str(folder), *parts(), *settings]) == 0
    assert "--train_parts connector,projector" in capsys.readouterr().out
    backbone = load_backbone(folder, device="cpu")
    assert isinstance(backbone, ComposedBackbone)
    assert backbone.facts.state_tokens == 3
    assert (backbone.settings.draw.strength, backbone.settings.draw.steps) == (0.4, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--strength", "1.5"], "draw.strength=1.5 must be above 0"),
        (["--image-size", "15"], "image_size=15 does not suit"),
        (["--vae", "./nowhere"], "image branch './nowhere': no such folder"),
        (["--num-queries", "0"], "num-queries"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    folder = tmp_path / "model"
    assert main(["compose", str(folder), *parts(), "--image-size", "16", *changes]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not folder.exists()


def test_a_pipeline_given_as_the_language_is_told_from_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = str(shared_llm_dit().parent / "pipeline")
    words = [*parts(), "--language", pipeline]
    capsys.readouterr()  # what making the parts wrote
    assert main(["compose", str(tmp_path / "model"), *words]) == 2
    error = capsys.readouterr().err
    assert f"{pipeline!r} is a diffusers pipeline" in error and error.count("\n") == 1
