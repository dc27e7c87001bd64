"""Odd files in a model folder end in success or in one line that names them, for every family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import unigame
from tests.backbones.conftest import FAMILIES
from tests.tiny import shared_tiny_janus, stir_lora, tiny_backbone
from unigame.backbones import load_backbone
from unigame.backbones.common.adapter_files import read_adapter
from unigame.backbones.composed.model import ComposedBackbone
from unigame.backbones.memory import size_of
from unigame.backbones.model_files import first_not_finite, loading_from, read_json
from unigame.errors import UserError

DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
DAMAGES: dict[str, Callable[[bytes], bytes] | None] = {
    "removed": None,
    "empty": lambda content: b"",
    "an empty object": lambda content: b"{}",
    "a list": lambda content: b"[]",
    "null": lambda content: b"null",
    "cut in half": lambda content: content[: len(content) // 2],
    "not UTF-8": lambda content: b"\xff\xfe" + content,
    "deep": lambda content: DEEP,
    "half a surrogate pair": lambda content: b'{"model_type": "\\ud800"}',
}
# What no JSON file of settings can be.
BROKEN = ("empty", "a list", "null", "cut in half", "not UTF-8", "deep")
ODD: tuple[Any, ...] = (-1, 0, 10**9, 2.5, "odd", None, [], {}, True, float("nan"), float("inf"))


def copy_of(family: str, folder: Path) -> Path:
    """A copy of a family's tiny checkpoint, with the parts of a composed model beside it."""
    source = FAMILIES[family]()
    if not family.startswith("composed"):
        return Path(shutil.copytree(source, folder / "model"))
    shutil.copytree(source.parent, folder, dirs_exist_ok=True)
    edit(folder / "model" / "config.json", relative)
    return folder / "model"


def relative(settings: dict[str, Any]) -> None:
    for name in ("language", "denoiser", "vision_encoder", "vae"):
        if settings[name]:
            settings[name] = f"../{Path(settings[name]).name}"


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str, tmp_path: Path) -> Path:
    return copy_of(family, tmp_path)


def outcome(model: Path) -> str | None:
    """None where the model loads, else the line that says why not. Anything else fails."""
    try:
        load_backbone(model, device="cpu")
    except UserError as error:
        line = str(error)
        assert "\n" not in line and len(line) < 1000
        assert str(model.parent) in line, f"names no folder: {line}"
        line.encode()  # may be printed anywhere
        return line
    return None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_success_or_one_line(family: str, tmp_path: Path, damage: str) -> None:
    model = copy_of(family, tmp_path)
    for file in sorted(file for file in tmp_path.rglob("*") if file.is_file()):
        content, change = file.read_bytes(), DAMAGES[damage]
        if damage == "deep" and file.suffix != ".json":
            continue  # braces are deep in JSON alone
        if change is None:
            file.unlink()
        else:
            file.write_bytes(change(content))
        line = outcome(model)
        if file.suffix == ".json" and damage in BROKEN:
            assert line is not None and file.name in line, f"{file.name}: {line}"
        if file.suffix == ".safetensors" and damage != "removed":
            assert line is not None and file.name in line, f"{file.name}: {line}"
        file.write_bytes(content)
    assert outcome(model) is None


def settings_of(content: Any) -> Iterator[tuple[Any, ...]]:
    """Paths of the settings in a configuration; long tables of words are left out."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for name, value in pairs:
        yield (name,)
        if isinstance(value, dict | list) and len(value) < 40:
            yield from ((name, *rest) for rest in settings_of(value))


def test_odd_values_of_settings_are_success_or_one_line(family: str, tmp_path: Path) -> None:
    """A sample: every seventh setting, each with another of the odd values."""
    model, number = copy_of(family, tmp_path), 0
    for file in sorted(tmp_path.rglob("*.json")):
        text = file.read_text()
        if file.name == "tokenizer.json":
            continue
        for path in list(settings_of(json.loads(text)))[::7]:
            content = json.loads(text)
            place = content
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = odd = ODD[number % len(ODD)]
            number += 1
            file.write_text(json.dumps(content))
            line = outcome(model)
            if isinstance(odd, float) and odd != 2.5:
                assert line is not None and file.name in line, f"{file.name} {path}={odd}: {line}"
        file.write_text(text)


@pytest.mark.parametrize(("value", "word"), [(-2, "-2"), (10**9, "1000000000"), (1, "layer")])
def test_a_wrong_number_of_layers_is_refused(
    family: str, model: Path, tmp_path: Path, value: int, word: str
) -> None:
    """Fewer layers than the weights have would load, and answer nonsense."""
    composed = family.startswith("composed")
    name = "llm_config.json" if family.startswith("bagel") else "config.json"
    file = (tmp_path / "language" if composed else model) / name

    def change(content: dict[str, Any]) -> None:
        section = content.get("text_config", content)
        assert section["num_hidden_layers"] == 2
        section["num_hidden_layers"] = value

    edit(file, change)
    line = outcome(model)
    assert line is not None and word in line


def test_far_more_weights_than_the_files_hold_are_not_made(tmp_path: Path) -> None:
    model = copy_of("janus", tmp_path)
    edit(model / "config.json", lambda c: c["text_config"].update(vocab_size=10**9))
    line = outcome(model)
    assert line is not None and "config.json" in line and "weights" in line


def test_a_shape_that_does_not_fit_is_named(tmp_path: Path) -> None:
    model = copy_of("janus", tmp_path)
    edit(model / "config.json", lambda c: c["text_config"].update(vocab_size=99))
    line = outcome(model)
    assert line is not None and "lm_head.weight" in line and "(99, 32)" in line


@pytest.mark.parametrize(
    ("value", "dtype"), [(float("nan"), torch.float32), (float("-inf"), torch.bfloat16)]
)
def test_weights_that_are_not_finite_are_refused(
    family: str, model: Path, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    for file in sorted(tmp_path.rglob("*.safetensors")):
        weights = load_file(file)
        name = max(weights, key=lambda name: weights[name].numel())
        spoilt = weights | {name: weights[name].to(dtype)}
        spoilt[name].view(-1)[-1] = value
        content = file.read_bytes()
        save_file(spoilt, file, metadata={"format": "pt"})
        line = outcome(model)
        assert line is not None and "NaN" in line, f"{file.name}: {line}"
        file.write_bytes(content)


def test_a_sum_that_overflows_is_no_fault_of_the_weights() -> None:
    large = torch.full((4,), 3e38)
    assert not large.sum().isfinite()
    assert first_not_finite([("a", large)]) is None
    large[2] = torch.nan
    assert first_not_finite([("a", torch.ones(2)), ("b", large)]) == "b"
    assert first_not_finite([("codes", torch.tensor([1])), ("none", torch.empty(0))]) is None


# ---- adapters ------------------------------------------------------------------------------------
@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    backbone = tiny_backbone().add_lora()
    stir_lora(backbone)
    backbone.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def adapter_outcome(adapter: Path) -> str | None:
    try:
        load_backbone(shared_tiny_janus(), device="cpu", adapter=adapter)
    except UserError as error:
        line = str(error)
        assert "\n" not in line and str(adapter) in line
        return line
    return None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_file_is_one_line(adapter: Path, damage: str) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        content, change = (adapter / name).read_bytes(), DAMAGES[damage]
        if change is None:
            (adapter / name).unlink()
        else:
            (adapter / name).write_bytes(change(content))
        line = adapter_outcome(adapter)
        assert line is not None and name in line
        (adapter / name).write_bytes(content)
    assert adapter_outcome(adapter) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "odd", None, 0, [], True])
def test_lora_alpha_must_be_a_finite_number(adapter: Path, value: Any) -> None:
    edit(adapter / "adapter_config.json", lambda c: c.update(lora_alpha=value))
    with pytest.raises(UserError, match="lora_alpha"):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", 0),
        ("r", -4),
        ("r", "odd"),
        ("r", float("inf")),
        ("lora_dropout", -0.5),
        ("lora_dropout", float("nan")),
        ("lora_dropout", "odd"),
        ("use_rslora", "odd"),
        ("rank_pattern", {"q_proj": -1}),
        ("alpha_pattern", {"q_proj": float("nan")}),
        ("target_modules", "(("),
        ("target_modules", 5),
        ("target_modules", {}),
        ("init_lora_weights", "odd"),
        ("layers_to_transform", "odd"),
        ("bias", "odd"),
        ("peft_type", 5),
        ("peft_type", None),
    ],
)
def test_odd_settings_of_an_adapter_are_named(adapter: Path, name: str, value: Any) -> None:
    edit(adapter / "adapter_config.json", lambda c: c.update({name: value}))
    line = adapter_outcome(adapter)
    assert line is not None and (name in line or "adapter_config.json" in line)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused_before_the_model_loads(
    adapter: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[0] = value
    save_file(weights, adapter / "adapter_model.safetensors")
    backbone = tiny_backbone()
    monkeypatch.setattr(
        "unigame.backbones.janus.load.from_pretrained",
        lambda *a, **k: pytest.fail("late"),
    )
    line = adapter_outcome(adapter)
    assert line is not None and name in line and "NaN" in line
    with pytest.raises(UserError, match="NaN"):
        backbone.load_adapter(adapter)
    assert not backbone.trainable_parameters()


def test_a_connector_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = copy_of("composed_sd", tmp_path)
    backbone = load_backbone(model, device="cpu")
    assert isinstance(backbone, ComposedBackbone)
    weights = load_file(model / "connector.safetensors")
    weights["connector.queries_NH"][0, 0] = torch.nan
    save_file(weights, model / "connector.safetensors")
    with pytest.raises(UserError, match="connector.safetensors.*NaN"):
        backbone.trained.load(model)


# ---- the guards themselves -----------------------------------------------------------------------
def test_doctor_says_one_line_about_an_odd_configuration(tmp_path: Path) -> None:
    model = copy_of("janus", tmp_path)
    edit(model / "config.json", lambda c: c["text_config"].update(hidden_act="odd"))
    with pytest.raises(UserError, match=r"config\.json.*odd") as caught:
        size_of(str(model))
    assert str(model) in str(caught.value)


def test_an_index_names_plain_files_only(tmp_path: Path) -> None:
    model = copy_of("janus", tmp_path)
    for table in ({}, {"a": 5}, {"a": ["b"]}, {"a": "../model.safetensors"}, [], None):
        index = model / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": table}))
        line = outcome(model)
        assert line is not None and index.name in line


def fail_at(file: Path) -> None:
    exec(compile("assert 1 > 2", str(file), "exec"))


def test_a_failed_assertion_of_ours_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), loading_from(tmp_path, ("config.json",)):
        fail_at(Path(unigame.__file__))
    with pytest.raises(UserError, match="AssertionError"), loading_from(tmp_path, ("config.json",)):
        fail_at(Path(torch.__file__))


def test_memory_that_ends_is_no_fault_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(MemoryError), loading_from(tmp_path, ("config.json",)):
        raise MemoryError


def test_json_with_a_byte_order_mark_or_in_another_encoding_is_named(tmp_path: Path) -> None:
    for content in (b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16")):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=r"config\.json"):
            read_json(tmp_path / "config.json")
