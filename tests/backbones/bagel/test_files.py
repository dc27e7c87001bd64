"""The published folder as it is: found, read tensor by tensor, accounted for, written again."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tests.backbones.conftest import loaded
from tests.tiny import random_images
from tests.tiny_bagel import as_published, make_tiny_bagel, set_settings, shared_tiny_bagel
from unigame.backbones import load_backbone
from unigame.backbones.bagel.configuration import FLUX_VAE, BagelConfig
from unigame.backbones.bagel.eyes import PlaceTable
from unigame.backbones.bagel.files import read_config, write_vocabulary
from unigame.backbones.bagel.layout import LATENT
from unigame.backbones.bagel.load import load_reading
from unigame.backbones.bagel.modeling import BagelModel
from unigame.backbones.bagel.size import published_config
from unigame.backbones.common.adapter_files import read_base
from unigame.backbones.common.counting import count, on_meta
from unigame.backbones.folder import find_family
from unigame.backbones.memory import size_of
from unigame.backbones.registry import available_backbones
from unigame.errors import UserError

# Names in FLUX's own file, as it was published.
FLUX_NAME = re.compile(
    r"(encoder|decoder)\.(conv_in|conv_out|norm_out|mid\.(block_[12]\.(norm|conv)[12]"
    r"|attn_1\.(norm|q|k|v|proj_out))|(down|up)\.\d\.(block\.\d\.((norm|conv)[12]|nin_shortcut)"
    r"|(down|up)sample\.conv))\.(weight|bias)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_tiny_bagel(), tmp_path / "model"))


def change(file: Path, **tensors: Any) -> None:
    """Put tensors into a file; None takes one out."""
    weights = load_file(file)
    for name, value in tensors.items():
        weights.pop(name, None)
        if value is not None:
            weights[name] = value
    save_file(weights, file)  # without metadata, as the published file


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(folder, device="cpu")
    return str(caught.value)


@pytest.mark.parametrize("known", [True, False])
def test_all_that_a_folder_lacks_is_said_at_once(folder: Path, known: bool) -> None:
    """By its own configuration it is a BAGEL, or by two of its files."""
    kept = {"config.json"} if known else {"ema.safetensors", "llm_config.json"}
    for file in folder.iterdir():
        if file.name not in kept:
            file.unlink()
    line = refusal(folder)
    lacking = {"llm_config.json", "vit_config.json", "ema.safetensors", "ae.safetensors"} - kept
    assert all(f"no {name}" in line for name in lacking) and str(folder) in line
    assert "no tokenizer.json or vocab.json" in line


# ---- found ---------------------------------------------------------------------------------------
def test_a_folder_without_a_configuration_of_its_own_loads(folder: Path) -> None:
    backbone = load_backbone(as_published(folder), device="cpu")
    # What 512 and 448 px come down to on the grids of 8 places.
    assert (backbone.facts.image_size, backbone.facts.num_image_tokens) == (32, 64)
    assert backbone.generate(["red"]).shape == (1, 3, 32, 32)
    (folder / "config.json").write_text('{"model_type": "qwen2", "image_size": 8}')
    assert load_backbone(folder, device="cpu").facts.image_size == 8


def test_it_is_found_on_the_hub_without_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(hub_id: str, name: str) -> str:
        asked.append(name)
        if name != "llm_config.json":
            response: Any = SimpleNamespace(status_code=404, headers={}, request=None)
            raise RemoteEntryNotFoundError("404 Client Error.", response=response)
        return str(shared_tiny_bagel() / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model_type, file = find_family("owner/bagel", available_backbones())
    assert model_type == "bagel" and file.parent == shared_tiny_bagel()
    assert asked[0] == "config.json"


def on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the Hub hold this folder under every id; what is asked for is listed."""
    asked = []

    def download(hub_id: str, name: str) -> str:
        asked.append(name)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    return asked


def test_it_is_found_on_the_hub_whatever_its_config_calls_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder: a configuration of the authors' own kind says nothing against its files."""
    set_settings(folder, model_type="qwen2")
    asked = on_the_hub(folder, monkeypatch)
    there = {file.name for file in folder.iterdir()}
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda hub_id, name: name in there)
    found = find_family("owner/bagel", available_backbones())
    assert found == ("bagel", folder / "config.json")
    assert asked == ["config.json"], "a VLM costs no download"
    there.remove("ema.safetensors")
    with pytest.raises(UserError, match="text-only LLM of type 'qwen2'"):
        find_family("owner/bagel", available_backbones())


def test_an_adapter_names_the_hub_id_and_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--owner--bagel" / "snapshots" / "c0ffee"
    on_the_hub(Path(shutil.copytree(shared_tiny_bagel(), snapshot)), monkeypatch)
    backbone = load_backbone("owner/bagel", device="cpu").add_lora()
    backbone.save_pretrained(tmp_path / "adapter")
    base = read_base(tmp_path / "adapter")
    assert (base.name, base.revision) == ("owner/bagel", "c0ffee")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "owner/bagel"
    assert str(tmp_path) not in (tmp_path / "adapter" / "README.md").read_text()


# ---- read ----------------------------------------------------------------------------------------
def test_names_in_the_files_are_the_published_ones() -> None:
    names = set(load_file(shared_tiny_bagel() / "ae.safetensors"))
    assert all(FLUX_NAME.fullmatch(name) for name in names), names
    assert {"decoder.up.1.upsample.conv.weight", "encoder.down.0.downsample.conv.bias"} <= names
    names = set(load_file(shared_tiny_bagel() / "ema.safetensors"))
    layer = "language_model.model.layers.1"
    for expert in ("", "_moe_gen"):
        own = [f"self_attn.{kind}_proj{expert}" for kind in "qkvo"]
        own += [f"self_attn.{kind}_norm{expert}" for kind in "qk"]
        own += [f"mlp{expert}.{kind}_proj" for kind in ("gate", "up", "down")]
        assert {f"{layer}.{part}.weight" for part in own} <= names
    for name in (
        "language_model.lm_head.weight",
        "language_model.model.norm_moe_gen.weight",
        f"{layer}.self_attn.q_proj_moe_gen.bias",
        f"{layer}.post_attention_layernorm_moe_gen.weight",
        "vit_model.vision_model.embeddings.patch_embedding.weight",
        "vit_model.vision_model.encoder.layers.0.self_attn.out_proj.weight",
        "vit_model.vision_model.post_layernorm.weight",
        "connector.fc2.bias",
        "vit_pos_embed.pos_embed",
        "latent_pos_embed.pos_embed",
        "time_embedder.mlp.2.weight",
        "vae2llm.weight",
        "llm2vae.bias",
    ):
        assert name in names
    assert not any(".layers.1." in name for name in names if name.startswith("vit_model"))


@pytest.mark.parametrize("file", ["ema.safetensors", "ae.safetensors"])
def test_every_tensor_is_accounted_for(folder: Path, file: str) -> None:
    name = "llm2vae.weight" if file == "ema.safetensors" else "decoder.mid.attn_1.q.weight"
    value = load_file(folder / file)[name]
    change(folder / file, **{name: None})
    line = refusal(folder)
    assert repr(name) in line and "lacks" in line and file in line
    change(folder / file, **{name: value[:-1].contiguous()})
    line = refusal(folder)
    assert repr(name) in line and str(tuple(value.shape)) in line
    change(folder / file, **{name: value, "something.else": torch.zeros(1)})
    line = refusal(folder)
    assert "unknown 'something.else'" in line and file in line


def test_fixed_tables_may_be_left_out(folder: Path) -> None:
    set_settings(folder, vit_max_num_patch_per_side=8, max_latent_size=8)
    tables = ("vit_pos_embed.pos_embed", "latent_pos_embed.pos_embed")
    change(folder / "ema.safetensors", **dict.fromkeys(tables))
    images, whole = random_images(2), loaded(shared_tiny_bagel())
    without = load_backbone(folder, device="cpu")
    assert torch.equal(without.embed_images(images), whole.embed_images(images))
    first, other = (b.generation_loss(images, ["a", "red"]) for b in (without, whole))
    assert torch.equal(first, other)


def test_fixed_tables_are_sines_and_cosines_of_the_column_then_of_the_row() -> None:
    """As in the authors' ``get_2d_sincos_pos_embed``: the first half says the column."""
    table = PlaceTable(5, 16).values()
    speeds = [10000 ** (-i / 4) for i in range(4)]
    for row in range(5):
        for column in range(5):
            wanted = [
                wave(at * s)
                for at in (column, row)
                for wave in (math.sin, math.cos)
                for s in speeds
            ]
            torch.testing.assert_close(table[row * 5 + column], torch.tensor(wanted))


def test_the_autoencoder_stays_float32_and_auto_is_the_files_own(folder: Path) -> None:
    weights = load_file(folder / "ema.safetensors")
    save_file({n: w.to(torch.bfloat16) for n, w in weights.items()}, folder / "ema.safetensors")
    backbone = load_backbone(folder, dtype="auto", device="cpu")
    kinds = {name.split(".")[1]: p.dtype for name, p in backbone.named_parameters()}
    assert kinds.pop("vae") == torch.float32 and set(kinds.values()) == {torch.bfloat16}
    assert backbone.facts.dtype == torch.bfloat16
    images = random_images(2)
    found = backbone.answer_loss(images, ["is it red"] * 2, ["yes", "no"])
    exact = load_backbone(folder, dtype="float32", device="cpu")
    expected = exact.answer_loss(images, ["is it red"] * 2, ["yes", "no"])
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"image_size": 18}, "image_size=18"),
        ({"image_size": 64}, "image_size=64"),
        ({"vision_size": 10}, "vision_size=10"),
        ({"vision_size": [8, 8, 8]}, "vision_size=[8, 8, 8]"),
        ({"vision_size": [8, 10]}, "give [8, 8]"),
        ({"image_size": [16, "a"]}, "image_size=[16, 'a']"),
        ({"draw_strength": 0}, "draw_strength=0"),
        ({"caption_dropout": 1}, "caption_dropout=1"),
        ({"sample_steps": 1}, "sample_steps=1"),
        ({"guidance_interval": 0.4}, "guidance_interval=0.4"),
        ({"connector_act": "swish2"}, "connector_act='swish2'"),
        ({"interpolate_pos": True}, "interpolate_pos=True"),
        ({"vae_config": {"scaling_factor": 0}}, "vae_config.scaling_factor=0"),
        ({"vae_config": {"shift_factor": None}}, "vae_config.shift_factor=None"),
        ({"guidance_interval": [1.0, 0.4]}, "guidance_interval=[1.0, 0.4]"),
        ({"guidance_interval": [0.4, 4]}, "guidance_interval=[0.4, 4]"),
        ({"guidance_interval": [math.nan, 1]}, "guidance_interval.0=nan"),
    ],
)
def test_a_setting_outside_its_range_is_named(
    folder: Path, settings: dict[str, Any], word: str
) -> None:
    set_settings(folder, **settings)
    line = refusal(folder)
    assert word in line and str(folder) in line


@pytest.mark.parametrize("patch", [2, 4])
def test_rows_are_as_long_for_a_reader_without_the_weights(tmp_path: Path, patch: int) -> None:
    """A worker of a data loader has the small files of a Hub repository, and no weights."""
    folder = make_tiny_bagel(tmp_path / "model", latent_patch_size=patch)
    own = load_backbone(folder, device="cpu").preprocessor.prompt("a red circle")
    assert own.ids.count(LATENT) == (8 // patch) ** 2
    for name in ("ema.safetensors", "ae.safetensors"):
        (folder / name).unlink()
    assert load_reading(folder).preprocessor.prompt("a red circle") == own
    set_settings(folder, latent_patch_size="2")
    with pytest.raises(UserError, match="latent_patch_size='2'"):
        load_reading(folder)


def test_the_authors_own_words_for_the_autoencoder_are_passed_over(folder: Path) -> None:
    set_settings(folder, vae_config={"z_channels": 16, "downsample": 8})
    assert read_config(folder).vae_config == FLUX_VAE
    # Nor does the shift that their code begins with count; one that a user wrote does.
    set_settings(folder, timestep_shift=1.0)
    assert read_config(folder).timestep_shift == 4.0
    set_settings(folder, timestep_shift=2.0)
    assert read_config(folder).timestep_shift == 2.0
    set_settings(folder, timestep_shift=1.0, vae_config=None)
    assert read_config(folder).timestep_shift == 1.0


def test_scale_and_shift_of_the_latents_are_the_folders_own(folder: Path, tmp_path: Path) -> None:
    """No shape says them."""
    usual = loaded(shared_tiny_bagel())
    written = json.loads((folder / "config.json").read_text())["vae_config"]
    own = {"scaling_factor": 0.5, "shift_factor": 0.25}
    set_settings(folder, vae_config=written | own)
    backbone = load_backbone(folder, device="cpu")
    images = random_images(2)
    mode = usual.encode_images(images) / 0.3611 + 0.1159
    torch.testing.assert_close(backbone.encode_images(images), (mode - 0.25) * 0.5)
    backbone.save_pretrained(tmp_path / "again")
    again = load_backbone(tmp_path / "again", device="cpu")
    assert torch.equal(again.encode_images(images), backbone.encode_images(images))
    # So may a file of a user's, beside a folder that says nothing else of it.
    set_settings(folder, vae_config=own)
    assert read_config(folder).vae_config == FLUX_VAE | own
    assert load_backbone(folder, device="cpu").base.config.vae_config == written | own


def test_the_activation_of_the_connector_is_the_folders_own(folder: Path, tmp_path: Path) -> None:
    set_settings(folder, connector_act="relu")
    backbone = load_backbone(folder, device="cpu")
    images, usual = random_images(2), loaded(shared_tiny_bagel())
    assert not torch.allclose(backbone.embed_images(images), usual.embed_images(images), atol=1e-3)
    backbone.save_pretrained(tmp_path / "again")
    again = load_backbone(tmp_path / "again", device="cpu")
    assert torch.equal(again.embed_images(images), backbone.embed_images(images))


def test_a_setting_that_is_nearly_one_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_settings(folder, interpolate_pos=False, visual_gen=True, torch_dtype="bfloat16")
    read_config(folder)
    assert caplog.text == ""
    set_settings(folder, guidance_intervall=[0, 1], sample_step=10)
    read_config(folder)
    assert "'guidance_intervall'" in caplog.text and "'guidance_interval'?" in caplog.text
    assert "'sample_step'" in caplog.text and "'sample_steps'?" in caplog.text


def test_a_tokenizer_without_the_marks_is_refused(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|vision_end|>", "<|vision_stop|>"))
    assert "'<|vision_end|>'" in refusal(folder)


def test_configurations_of_the_authors_code_are_read(folder: Path) -> None:
    """Rotary base beside the other numbers, and kernels that may not be installed here."""
    file = folder / "llm_config.json"
    content = json.loads(file.read_text())
    assert "rope_parameters" not in content and content["rope_scaling"] is None
    assert content["layer_module"] == "Qwen2MoTDecoderLayer" and content["qk_norm"]
    content["rope_theta"] = 1e6
    file.write_text(json.dumps(content | {"_attn_implementation": "flash_attention_2"}))
    config = read_config(folder)
    assert config.llm_config.rope_parameters["rope_theta"] == 1e6
    file.write_text(json.dumps(content | {"attn_implementation": "flash_attention_2"}))
    assert BagelModel(read_config(folder)).decoder.config._attn_implementation == "sdpa"


def test_what_the_authors_code_reads_is_written(tmp_path: Path) -> None:
    """Their Qwen2 knows the rotary base at the top alone, their tokenizer two more files."""
    model = BagelModel.from_pretrained(shared_tiny_bagel())
    model.config.llm_config.rope_parameters = {
        **{"rope_type": "yarn", "rope_theta": 5e5},
        **{"factor": 4.0, "original_max_position_embeddings": 128},
    }
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "llm_config.json").read_text())
    assert content["rope_theta"] == 5e5 and content["rope_scaling"]["rope_type"] == "yarn"
    again = read_config(tmp_path).llm_config.rope_parameters
    assert again["rope_theta"] == 5e5 and again["factor"] == 4.0
    merges = [("r", "e"), ("re", "d")]
    vocabulary = {piece: place for place, piece in enumerate(["r", "e", "d", "re", "red"])}
    pieces = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    write_vocabulary(PreTrainedTokenizerFast(tokenizer_object=pieces), tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text()) == vocabulary
    assert (tmp_path / "merges.txt").read_text() == "#version: 0.2\nr e\nre d\n"


def test_reading_larger_than_drawing_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = read_config(folder)
    assert config.vision_size == config.image_size
    load_backbone(folder, device="cpu")
    assert "only enlarged" not in caplog.text
    set_settings(folder, vision_size=config.vision_size * 2)
    load_backbone(folder, device="cpu")
    assert "only enlarged" in caplog.text and "two shapes" not in caplog.text


def test_reading_and_drawing_of_two_shapes_are_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_settings(folder, image_size=[8, 16], vision_size=[8, 16])
    load_backbone(folder, device="cpu")
    assert "two shapes" not in caplog.text
    set_settings(folder, image_size=[8, 16], vision_size=[8, 8])
    load_backbone(folder, device="cpu")
    assert "two shapes" in caplog.text


# ---- in transformers' manner ---------------------------------------------------------------------
def test_the_model_alone_saves_and_loads(tmp_path: Path) -> None:
    model = BagelModel.from_pretrained(shared_tiny_bagel())
    model.save_pretrained(tmp_path)
    again = BagelModel.from_pretrained(tmp_path)
    assert isinstance(again.config, BagelConfig)
    for (name, one), (other_name, other) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other_name and torch.equal(one, other)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bagel"
    alone = BagelConfig.from_pretrained(tmp_path)
    for part in ("llm_config", "vit_config"):
        assert getattr(alone, part).hidden_size == getattr(model.config, part).hidden_size


# ---- size ----------------------------------------------------------------------------------------
def test_the_published_model_has_as_many_weights_as_its_authors_say() -> None:
    """Counted with one layer and with two, since all layers are alike."""
    counts = []
    for layers in (1, 2):
        config = published_config()
        assert config.llm_config.num_hidden_layers == 28
        config.llm_config.num_hidden_layers = layers
        counts.append(count(on_meta(lambda config=config: BagelModel(config))))
    assert counts[0] + 27 * (counts[1] - counts[0]) == pytest.approx(14.7e9, rel=2e-3)
    assert (config.num_image_tokens, config.num_latents) == (1024, 1024)
    assert config.latent_shape == (16, 64, 64)


def test_the_size_of_a_folder_is_that_of_its_model() -> None:
    backbone = loaded(shared_tiny_bagel())
    size = size_of(str(shared_tiny_bagel()))
    assert size.parameters == backbone.facts.num_parameters
