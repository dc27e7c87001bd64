"""What ``unigame answer`` shows the model: the picture as the data readers decode it."""

from __future__ import annotations

import importlib
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.backbones.conftest import loaded
from tests.data.files import BLUE, RED, jpeg, png
from tests.tiny import shared_tiny_janus
from tests.tiny_bagel import shared_tiny_bagel
from unigame.backbones.bagel.model import BagelBackbone
from unigame.cli import main
from unigame.cli.answer import read_picture
from unigame.cli.model import chosen
from unigame.data.images import decode_image
from unigame.errors import UserError

evaluate = importlib.import_module("unigame.cli.evaluate")


def rotated() -> bytes:
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def transparent() -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA", (8, 6), (220, 20, 20, 0)).save(stream, "PNG")
    return stream.getvalue()


def sixteen_bits() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((6, 8), 257 * 100, np.uint16)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "data", [rotated(), transparent(), sixteen_bits(), jpeg((0, 255, 255, 0), mode="CMYK")]
)
def test_a_users_picture_is_decoded_as_training_data_is(tmp_path, data):
    (tmp_path / "my picture ü.png").write_bytes(data)
    picture = read_picture(tmp_path / "my picture ü.png")
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(decode_image(data)))


def test_hidden_colours_and_lying_photos_are_not_shown(tmp_path):
    (tmp_path / "a.png").write_bytes(transparent())
    assert read_picture(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    (tmp_path / "a.jpg").write_bytes(rotated())
    assert read_picture(tmp_path / "a.jpg").size == (32, 64)


def bomb(monkeypatch) -> bytes:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    return png()


@pytest.mark.parametrize("kind", ["bomb", "cut", "text", "empty"])
def test_a_picture_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, capsys, kind):
    whole = png(size=(64, 64))
    data = {"cut": whole[: len(whole) // 2], "text": b"<html>", "empty": b""}.get(kind)
    path = tmp_path / f"{kind}.png"
    path.write_bytes(bomb(monkeypatch) if data is None else data)
    assert main(["answer", str(path), "what is it?"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert f"{kind}.png" in said.err


def test_no_picture_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "no.png", tmp_path, tmp_path / "a\0b.png", tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match="no picture at .*"):
            read_picture(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [("what " * 300, "too many tokens"), ("a <image_placeholder>", "'<image_placeholder>' in it")],
)
def test_a_text_that_the_model_cannot_take_is_one_line(tmp_path, capsys, text, named):
    """Beyond its 256 positions janus-nano answered and drew nonsense, with exit code 0."""
    picture = tmp_path / "a.png"
    picture.write_bytes(png(RED))
    for command in (["answer", str(picture), text], ["generate", text]):
        output = ["--output", str(tmp_path / "g.png")] if command[0] == "generate" else []
        assert main([*command, *output]) == 2
        said = capsys.readouterr()
        assert named in said.err
        assert said.err.count("\n") == 1
    assert not (tmp_path / "g.png").exists()


# ---- guidance ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("words", "used"), [([], 4.0), (["--guidance-scale", "1.5"], 1.5)])
def test_generate_is_guided_as_the_family_is_where_nothing_is_asked(
    tmp_path, monkeypatch, words, used
):
    found, generate = [], BagelBackbone.generate

    def told(self, prompts, **how):
        found.append(how["guidance_scale"])
        return generate(self, prompts, **how)

    monkeypatch.setattr(BagelBackbone, "generate", told)
    command = ["generate", "a red circle", "--model", str(shared_tiny_bagel())]
    assert main([*command, "--output", str(tmp_path / "a.png"), *words]) == 0
    assert found == [used]


@pytest.mark.parametrize(
    ("synthetic", "asked", "used"), [(False, None, 4.0), (False, 2.0, 2.0), (True, None, 1.0)]
)
def test_so_is_evaluate_but_on_the_synthetic_world(monkeypatch, synthetic, asked, used):
    found = []
    monkeypatch.setattr(
        "unigame.evaluation.run.run_jobs", lambda *_, drawing, **rest: found.append(drawing)
    )
    own = {"seed": 3, "batch_size": None, "max_images": None, "temperature": None}
    args = SimpleNamespace(**own, synthetic=synthetic, guidance_scale=asked)
    backbone = SimpleNamespace(facts=loaded(shared_tiny_bagel()).facts)
    evaluate._run(args, None, None, backbone, [])
    assert (found[0].guidance_scale, found[0].temperature, found[0].seed) == (used, 1.0, 3)


def test_an_adapter_is_used_with_the_model_that_it_was_made_for(tmp_path, capsys):
    backbone = loaded(shared_tiny_janus()).add_lora()
    backbone.save_pretrained(tmp_path / "adapter")
    (tmp_path / "a.png").write_bytes(png())
    words = ["answer", str(tmp_path / "a.png"), "what colour is it"]
    words += ["--adapter", str(tmp_path / "adapter")]
    assert main(words) == 0
    of_its_own = capsys.readouterr()
    assert main([*words, "--model", str(shared_tiny_janus())]) == 0
    assert capsys.readouterr().out == of_its_own.out
    assert "was made for" not in of_its_own.err, "no warning of another base"
    assert chosen(None, None) == "janus-nano"
    assert chosen("janus-nano", str(tmp_path / "adapter")) == "janus-nano"


@pytest.mark.parametrize("kind", ["missing", "broken"])
def test_an_adapter_that_cannot_be_read_is_named(tmp_path, capsys, kind):
    folder = tmp_path / "adapter"
    if kind == "broken":
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    (tmp_path / "a.png").write_bytes(png())
    words = ["answer", str(tmp_path / "a.png"), "what colour is it", "--adapter", str(folder)]
    assert main(words) == 2
    assert str(folder) in capsys.readouterr().err.splitlines()[-1]
