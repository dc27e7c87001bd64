"""An adapter knows the base model that it was made for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import make_tiny_janus, shared_tiny_janus, stir_lora, tiny_backbone
from tests.tiny_bagel import shared_tiny_bagel
from tests.tiny_chameleon import tiny_chameleon
from tests.tiny_composed import shared_vlm_unet
from tests.tiny_emu3 import tiny_emu3
from unigame.backbones import load_backbone
from unigame.backbones.common.adapter_files import read_base, weights_digest
from unigame.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def saved_adapter(folder: Path, base: str | Path | None = None) -> Path:
    backbone = load_backbone(base or shared_tiny_janus(), device="cpu").add_lora()
    stir_lora(backbone)
    backbone.save_pretrained(folder)
    return folder


def test_an_adapter_of_another_base_of_equal_shapes_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = saved_adapter(tmp_path / "adapter")
    other = make_tiny_janus(tmp_path / "other", seed=1)
    load_backbone(other, device="cpu", adapter=adapter)
    assert str(shared_tiny_janus()) in caplog.text and str(other) in caplog.text
    assert str(adapter) in caplog.text


def test_an_adapter_of_another_family_names_its_own_base(tmp_path: Path) -> None:
    adapter, base = saved_adapter(tmp_path / "adapter"), shared_tiny_janus()
    other = shared_tiny_bagel()
    with pytest.raises(UserError) as caught:
        load_backbone(other, device="cpu", adapter=adapter)
    said = str(caught.value)
    assert f"was made for the base model '{base}' and does not fit '{other}'" in said
    assert f"--model {base} (" in said and "\n" not in said


def test_the_hubs_commit_stays_with_the_adapter(tmp_path: Path) -> None:
    assert read_base(saved_adapter(tmp_path / "folder")).revision == ""
    backbone = load_backbone(shared_tiny_janus(), device="cpu").add_lora()
    backbone.base.config._commit_hash = "c0ffee"  # as transformers notes it for a model of the Hub
    backbone.save_pretrained(tmp_path / "hub")
    assert read_base(tmp_path / "hub").revision == "c0ffee"


def test_it_is_told_on_the_command_line(tmp_path: Path) -> None:
    from PIL import Image

    adapter = saved_adapter(tmp_path / "adapter")
    other = make_tiny_janus(tmp_path / "other", seed=1)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    words = ["answer", str(tmp_path / "a.png"), "what", "--adapter", str(adapter), "--model"]
    program = (
        "import sys; from unigame import cli\n"
        f"for base in sys.argv[1:]: assert cli.main([*{words!r}, base]) == 0; "
        "print('NEXT', file=sys.stderr, flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(other), str(shared_tiny_janus())],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    of_other, of_own, _ = done.stderr.split("NEXT")
    assert str(shared_tiny_janus()) in of_other, done.stderr
    assert str(shared_tiny_janus()) not in of_own, done.stderr


def test_its_own_base_is_known_in_another_folder_and_precision(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = saved_adapter(tmp_path / "adapter")
    moved = tmp_path / "moved"
    shutil.copytree(shared_tiny_janus(), moved)
    for dtype in ("float32", "bfloat16"):
        load_backbone(moved, device="cpu", adapter=adapter, dtype=dtype)
    assert caplog.text == ""


def test_without_a_digest_the_names_are_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = saved_adapter(tmp_path / "adapter")
    file, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(weights, file)
    settings = json.loads(config.read_text())
    for name, told in ((shared_tiny_janus().name, False), ("them/their-model", True)):
        settings["base_model_name_or_path"] = f"{name}"
        config.write_text(json.dumps(settings))
        caplog.clear()
        load_backbone(shared_tiny_janus(), device="cpu", adapter=adapter)
        assert ("their-model" in caplog.text) == told


@pytest.mark.parametrize("make", [tiny_backbone, tiny_emu3, tiny_chameleon])
def test_a_digest_is_that_of_the_base_alone(make) -> None:  # type: ignore[no-untyped-def]
    backbone = make()
    plain = weights_digest(backbone)
    stir_lora(backbone.add_lora(), scale=1.0)
    assert weights_digest(backbone) == plain
    weight = next(p for name, p in backbone.named_parameters() if "base_layer" in name)
    with torch.no_grad():
        weight[0, 0] += 1.0
    assert weights_digest(backbone) != plain


def test_a_composed_model_knows_its_adapters_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = saved_adapter(tmp_path / "adapter", shared_vlm_unet())
    backbone = load_backbone(shared_vlm_unet(), device="cpu", adapter=adapter)
    assert caplog.text == ""
    with torch.no_grad():
        next(iter(backbone.trained.parameters())).add_(1.0)  # type: ignore[union-attr, operator]
    backbone.load_adapter(adapter)
    assert str(shared_vlm_unet()) in caplog.text


def test_the_base_is_named_so_that_it_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_tiny_janus(tmp_path / "here" / "tiny")
    monkeypatch.chdir(base.parent)
    adapter = saved_adapter(tmp_path / "adapter", "tiny")
    monkeypatch.chdir(tmp_path)
    config = peft.PeftConfig.from_pretrained(str(adapter))
    assert config.base_model_name_or_path == str(base)
    card = (adapter / "README.md").read_text()
    assert f"base_model: {base}" in card and f"base_model:adapter:{base}" in card
    load_backbone(config.base_model_name_or_path, device="cpu", adapter=adapter)
