"""Composed models that cannot work are named in one line, before any weight is loaded."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel

from tests.tiny import random_images
from tests.tiny_composed import shared_llm_dit, shared_vlm_unet
from unigame.backbones import load_backbone
from unigame.backbones.composed.config import ComposedConfig, ConnectorConfig, read_config
from unigame.backbones.composed.load import compose
from unigame.errors import UserError


@pytest.fixture
def vlm(tmp_path: Path) -> Path:
    """A copy of the tiny VLM + UNet with its parts, to damage: ``model`` and what it names."""
    return copied(shared_vlm_unet(), tmp_path)


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    return copied(shared_llm_dit(), tmp_path)


def copied(model: Path, place: Path) -> Path:
    root = Path(shutil.copytree(model.parent, place / "all"))
    names = {"language": "language", "denoiser": "pipeline", "vision_encoder": "encoder"}
    edit(
        root / "model" / "config.json",
        {key: str(root / name) for key, name in names.items() if (root / name).is_dir()},
    )
    return root / "model"


def edit(file: Path, changes: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import ModelMixin

    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("weights were loaded before the check")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(ModelMixin, "from_pretrained", refuse)


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda model: edit(model / "config.json", changes)


def part(path: str, **changes: Any) -> Callable[[Path], None]:
    return lambda model: edit(model.parent / path, changes)


def remove(path: str) -> Callable[[Path], None]:
    return lambda model: (model.parent / path).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (config(denoiser=None), "has no image branch: '.*language' alone draws nothing"),
        (config(language=None), "names no language model"),
        (config(version=2), "of version 2, this code reads 1"),
        (config(colour="red"), "unknown key 'colour'"),
        (config(draw={"strenght": 0.5}), "draw has the unknown key 'strenght'.*strength, steps"),
        (config(draw={"strength": 0.0}), "draw.strength=0.0 must be above 0"),
        (config(sample_steps=0), "sample_steps=0 must be a whole number"),
        (config(image_size=15), "image_size=15 does not suit .* a multiple of 4"),
        (config(vision_encoder="x"), "has eyes of its own; leave out vision_encoder='x'"),
        (config(language="./nowhere"), "language './nowhere': no such folder"),
        (config(denoiser="./nowhere"), "image branch './nowhere': no such folder"),
        (
            config(connector={"num_queries": 6, "width": 768, "hidden": 64}),
            "connector gives a conditioning of width 768, denoiser .* reads 32",
        ),
        (
            config(connector={"num_queries": 7, "width": 32, "hidden": 64}),
            r"queries_NH' of shape \(6, 32\), the parts named in config.json need \(7, 32\)",
        ),
        (remove("model/connector.safetensors"), "needs its connector: make one with 'unigame comp"),
        (remove("language/config.json"), "model '.*language' has no config.json"),
        (
            part("language/config.json", model_type="nonsense"),
            "language '.*language': its config.json does not load: .*nonsense",
        ),
        (  # transformers 5.17 does not make its configuration of these values
            part("language/config.json", model_type="gemma3"),
            "VLM of type 'gemma3', whose way|config.json does not load: AttributeError",
        ),
        (part("language/config.json", model_type="vit"), "type 'vit', neither a VLM nor a causal"),
        (part("pipeline/unet/config.json", _class_name="FluxTransformer2DModel"), "is a Flux"),
        (
            part("pipeline/unet/config.json", addition_embed_type="text_time"),
            "wants further conditions .addition_embed_type='text_time'",
        ),
        (part("pipeline/unet/config.json", in_channels=9), "latents of 4 channels, .* reads 9"),
        (part("pipeline/vae/config.json", _class_name="VQModel"), "is a VQModel; supported: Auto"),
        (part("pipeline/model_index.json", unet=None), "a pipeline without a unet or transformer"),
        (
            part("pipeline/scheduler/scheduler_config.json", prediction_type="score"),
            "prediction_type='score'",
        ),
        (remove("pipeline/vae/config.json"), "has no vae/config.json"),
    ],
)
def test_what_cannot_work_is_named_before_weights_load(
    vlm: Path, no_weights: None, damage: Callable[[Path], None], message: str
) -> None:
    damage(vlm)
    with pytest.raises(UserError, match=message) as caught:
        load_backbone(vlm, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (config(vision_encoder=None), "text-only and cannot see; set vision_encoder to a SigLIP"),
        (part("encoder/config.json", model_type="siglip2"), "type 'siglip2'; supported: clip, "),
        (config(vision_size=32), "vision_size=32, but the vision encoder reads 16 px"),
        (part("language/config.json", logits_scaling=8.0), "changes its logits by logits_scaling"),
    ],
)
def test_an_llm_needs_an_encoder_that_is_known(
    llm: Path, no_weights: None, damage: Callable[[Path], None], message: str
) -> None:
    damage(llm)
    with pytest.raises(UserError, match=message):
        load_backbone(llm, device="cpu")


def test_missing_tensors_of_a_part_are_an_error(vlm: Path) -> None:
    file = vlm.parent / "pipeline/unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack 1 tensors of the model, 'conv_in.weight'"):
        load_backbone(vlm, device="cpu")


def test_a_gated_part_says_so(vlm: Path, no_weights: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it")

    config(denoiser="owner/gated")(vlm)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match="'owner/gated' is gated, and the Hub.*hf auth login"):
        load_backbone(vlm, device="cpu")
    config(denoiser=str(vlm.parent / "pipeline"), language="owner/gated-too")(vlm)
    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(UserError, match="language 'owner/gated-too' is gated, and"):
        load_backbone(vlm, device="cpu")


# ---- without diffusers --------------------------------------------------------------------------
def test_without_diffusers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def hidden(name: str, *args: Any) -> Any:
        return None if name == "diffusers" else find(name, *args)

    monkeypatch.setattr("unigame.backbones.composed.parts.find_spec", hidden)
    with pytest.raises(UserError, match=r"install it: pip install 'unigame\[composed\]'"):
        load_backbone(shared_vlm_unet(), device="cpu")


def test_importing_unigame_imports_no_diffusers() -> None:
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import unigame.backbones, unigame.backbones.composed.model"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# ---- composing ----------------------------------------------------------------------------------
def test_compose_fits_the_width_and_depends_on_its_seed(vlm: Path, tmp_path: Path) -> None:
    root = vlm.parent
    parts = ComposedConfig(
        language=str(root / "language"),
        denoiser=str(root / "pipeline"),
        image_size=16,
        connector=ConnectorConfig(num_queries=3, width=999, hidden=8),
    )
    state = torch.get_rng_state()
    made = [compose(tmp_path / f"made{i}", parts, seed=i // 2) for i in range(3)]
    assert torch.equal(state, torch.get_rng_state())
    assert read_config(made[0]).connector.width == 32
    same, again, other = (load_file(folder / "connector.safetensors") for folder in made)
    name = "connector.queries_NH"
    assert torch.equal(same[name], again[name]) and not torch.equal(same[name], other[name])
    with pytest.raises(UserError, match="holds a model already"):
        compose(made[0], parts)


def test_parts_may_lie_beside_the_configuration(vlm: Path) -> None:
    for name in ("language", "pipeline"):
        shutil.move(vlm.parent / name, vlm / name)
    config(language="language", denoiser="pipeline")(vlm)
    images = random_images(1)
    moved, original = load_backbone(vlm, device="cpu"), load_backbone(shared_vlm_unet())
    assert torch.equal(moved.encode_images(images), original.encode_images(images))


def test_a_standalone_vae_replaces_the_pipelines(vlm: Path) -> None:
    other = Path(shutil.copytree(vlm.parent / "pipeline/vae", vlm.parent / "vae"))
    edit(other / "config.json", {"scaling_factor": 0.25})
    images = random_images(1)
    expected = load_backbone(vlm, device="cpu").encode_images(images) / 2
    config(vae=str(other))(vlm)
    torch.testing.assert_close(load_backbone(vlm, device="cpu").encode_images(images), expected)


def test_saving_names_the_frozen_parts_and_copies_none(tmp_path: Path) -> None:
    load_backbone(shared_llm_dit(), device="cpu").save_pretrained(tmp_path / "saved")
    names = {file.name for file in (tmp_path / "saved").iterdir()}
    assert names == {"config.json", "connector.safetensors"}


def test_a_foreign_connector_is_refused(vlm: Path) -> None:
    shutil.copy(shared_llm_dit() / "connector.safetensors", vlm)
    with pytest.raises(UserError, match="it was trained with other parts or sizes"):
        load_backbone(vlm, device="cpu")


def test_a_merged_model_takes_along_what_reads_it_and_nothing_else(
    vlm: Path, tmp_path: Path
) -> None:
    language = vlm.parent / "language"
    mine = ("trainer_state.json", "notes.txt", "patients.json", "tokenizer_notes.txt", "my.model")
    backbone: Any = load_backbone(vlm, device="cpu").add_lora()
    for name in (*mine, "merges.txt", "tokenizer.model"):
        (language / name).write_text("{}")
    backbone.save_merged(tmp_path / "merged")
    there = {file.name for file in (tmp_path / "merged" / "language").iterdir()}
    assert not there & set(mine)
    assert {"config.json", "tokenizer.json", "merges.txt", "tokenizer.model"} <= there
