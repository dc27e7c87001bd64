"""Wrong checkpoints are named in one line, before any weight is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import JanusForConditionalGeneration

from tests.tiny import make_tiny_janus, shared_tiny_janus, tiny_backbone
from unigame.backbones import load_backbone
from unigame.backbones import registry as families
from unigame.backbones.janus.layout import build_processor
from unigame.backbones.janus.model import JanusBackbone
from unigame.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_tiny_janus(), tmp_path / "model"))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("weights were loaded before the check")

    monkeypatch.setattr(JanusForConditionalGeneration, "from_pretrained", refuse)


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lost_shard(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "no config.json"),
        (write("config.json", b"{"), "no model configuration"),
        (write("config.json", b"[]"), "no model configuration"),
        (edit_config(model_type="vit"), "type 'vit'; supported families: .*janus.*`unigame ba"),
        (remove("model.safetensors"), "model.safetensors' is missing"),
        (write("model.safetensors", b"version https://git-lfs"), "unreadable .* Git LFS"),
        (lost_shard, "model-00002-of-00002.safetensors' is missing"),
        (write("model.safetensors.index.json", b"{}"), "no weight index"),
        (pickle_only, "only pytorch_model.bin, a pickle"),
        (remove("tokenizer.json"), "no tokenizer.json"),
        (remove("processor_config.json"), "neither processor_config.json nor"),
    ],
)
def test_a_broken_checkpoint_is_named_before_weights_load(
    folder: Path, no_weights: None, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_backbone(folder, device="cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_weight_file_is_refused(folder: Path, no_weights: None) -> None:
    save_file({}, folder / "model.safetensors")
    with pytest.raises(UserError, match="holds no tensors"):
        load_backbone(folder)


@pytest.mark.parametrize("name", ["./nowhere", "nowhere", "a/b/c", "/nowhere/at/all"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}': no such folder"):
        load_backbone(name)


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(UserError, match="is a file"):
        load_backbone(folder / "config.json")


def test_impossible_dtype_device_and_adapter_are_refused_first(no_weights: None) -> None:
    model = shared_tiny_janus()
    with pytest.raises(UserError, match="dtype 'float8'.*float32, bfloat16, auto"):
        load_backbone(model, dtype="float8")
    with pytest.raises(UserError, match="device 'quantum'"):
        load_backbone(model, device="quantum")
    with pytest.raises(UserError, match="adapter folder '/nowhere' has no adapter_config.json"):
        load_backbone(model, device="cpu", adapter="/nowhere")


def test_a_hub_id_is_asked_for_its_config_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_weights: None
) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "bert"}')
    asked: list[str] = []

    def download(repo: str, file: str) -> str:
        asked.append(f"{repo}:{file}")
        return str(config)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match="type 'bert'"):
        load_backbone("some/bert", device="cpu")
    assert asked == ["some/bert:config.json"]


def test_an_unreachable_hub_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, file: str) -> str:
        raise LocalEntryNotFoundError("offline\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"'nobody/nothing': no such folder here.*\(offline\)"):
        load_backbone("nobody/nothing")


def test_missing_tensors_are_an_error_not_a_random_start(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.aligner.fc1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack 1 tensors.*model.aligner.fc1.weight"):
        load_backbone(folder, device="cpu")


def test_tensors_of_another_shape_are_an_error(folder: Path, tmp_path: Path) -> None:
    wider = make_tiny_janus(tmp_path / "wider", hidden=64)
    shutil.copy(wider / "model.safetensors", folder)
    with pytest.raises(UserError, match="do not load|lack"):
        load_backbone(folder, device="cpu")


def test_model_and_processor_must_agree_on_the_picture() -> None:
    model = tiny_backbone().janus
    with pytest.raises(UserError, match="24 px images of 36 tokens, the model reads 16 px and 16"):
        JanusBackbone(model, build_processor(["red"], 24, 36))


def test_dtypes(folder: Path) -> None:
    model = JanusForConditionalGeneration.from_pretrained(folder).to(torch.float16)
    model.save_pretrained(folder)
    assert load_backbone(folder, device="cpu").facts.dtype == torch.float32
    assert load_backbone(folder, dtype="bfloat16", device="cpu").facts.dtype == torch.bfloat16
    assert load_backbone(folder, dtype="auto", device="cpu").facts.dtype == torch.bfloat16


def test_other_families_come_from_entry_points(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries(group: str) -> list[EntryPoint]:
        assert group == "unigame.backbones"
        loader = "unigame.backbones.janus.load:from_pretrained"
        return [
            EntryPoint("emu9", loader, group),
            EntryPoint("lost", "no_such_package:load", group),
            EntryPoint("janus", "no_such_package:hijack", group),
        ]

    monkeypatch.setattr(families, "entry_points", entries)
    built_in = {info.model_type for info in families.BUILT_IN}
    assert set(families.available_backbones()) - built_in == {"emu9", "lost"}
    assert load_backbone(folder, device="cpu").facts.family == "janus"
    edit_config(model_type="lost")(folder)
    with pytest.raises(UserError, match="'lost' is registered as 'no_such_package:load'"):
        load_backbone(folder, device="cpu")
    expected, called = tiny_backbone(), []

    def load(path: Path, **settings: Any) -> JanusBackbone:
        called.append((path, settings))
        return expected

    monkeypatch.setattr("unigame.backbones.janus.load.from_pretrained", load)
    edit_config(model_type="emu9")(folder)
    assert load_backbone(folder, device="cpu") is expected
    assert called == [(folder, {"dtype": "float32", "device": torch.device("cpu")})]


def test_the_processor_is_the_pil_one_whatever_is_installed() -> None:
    image_processor = tiny_backbone().processor.image_processor
    assert type(image_processor).__name__ == "JanusImageProcessorPil"
