"""The image decoder that Chameleon lacks: the sums of its relative, from files of all kinds."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import ChameleonForConditionalGeneration, JanusVQVAEConfig
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

from tests.tiny import random_images
from tests.tiny_chameleon import shared_tiny_chameleon
from unigame.backbones import load_backbone
from unigame.backbones.chameleon.load import ChameleonVQDecoder
from unigame.backbones.chameleon.model import ChameleonBackbone
from unigame.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_tiny_chameleon(), tmp_path / "model"))


def load(folder: Path) -> ChameleonBackbone:
    backbone = load_backbone(folder, device="cpu")
    assert isinstance(backbone, ChameleonBackbone)
    return backbone


def original(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "vqgan.ckpt", weights_only=True)["state_dict"]


def test_it_computes_what_januss_decoder_does_without_attention_in_its_levels() -> None:
    """The two families share their blocks; Janus lists its levels the other way round."""
    shape: dict[str, Any] = {
        "latent_channels": 16,
        "base_channels": 32,
        "channel_multiplier": [1, 2, 4],
        "num_res_blocks": 2,
    }
    torch.manual_seed(0)
    ours = ChameleonVQDecoder(ChameleonVQVAEConfig(resolution=16, **shape)).eval()
    theirs = JanusVQVAEDecoder(JanusVQVAEConfig(**shape)).eval()
    for level in theirs.up:
        level.attn = nn.ModuleList()
    weights = {
        re.sub(r"^up\.(\d)", lambda match: f"up.{2 - int(match[1])}", name): tensor
        for name, tensor in ours.state_dict().items()
    }
    theirs.load_state_dict(weights)
    latents = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(ours(latents), theirs(latents))
    assert ours(latents).shape == (2, 3, 16, 16)


def test_its_tensors_have_the_names_and_shapes_of_the_original() -> None:
    """As published: two blocks around one attention, then levels that run from the last to 0."""
    shape: dict[str, Any] = {"base_channels": 32, "latent_channels": 16, "num_res_blocks": 1}
    config = ChameleonVQVAEConfig(resolution=16, channel_multiplier=[1, 1, 2], **shape)
    found = {name: tuple(t.shape) for name, t in ChameleonVQDecoder(config).state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int) -> None:
        expected[f"{name}.weight"], expected[f"{name}.bias"] = weight, weight[:1]

    def block(name: str, entering: int, leaving: int) -> None:
        layer(f"{name}.norm1", entering)
        layer(f"{name}.conv1", leaving, entering, 3, 3)
        layer(f"{name}.norm2", leaving)
        layer(f"{name}.conv2", leaving, leaving, 3, 3)
        if entering != leaving:
            layer(f"{name}.nin_shortcut", leaving, entering, 1, 1)

    layer("conv_in", 64, 16, 3, 3)
    block("mid.block_1", 64, 64)
    layer("mid.attn_1.norm", 64)
    for name in ("q", "k", "v", "proj_out"):
        layer(f"mid.attn_1.{name}", 64, 64, 1, 1)
    block("mid.block_2", 64, 64)
    for level, entering, leaving in ((2, 64, 64), (1, 64, 32), (0, 32, 32)):
        block(f"up.{level}.block.0", entering, leaving)
        block(f"up.{level}.block.1", leaving, leaving)
        if level:
            layer(f"up.{level}.upsample.conv", leaving, leaving, 3, 3)
    layer("norm_out", 32)
    layer("conv_out", 3, 32, 3, 3)
    assert found == expected


def test_attention_goes_where_the_configuration_has_it() -> None:
    config = ChameleonVQVAEConfig(
        resolution=16, base_channels=32, channel_multiplier=[1, 1, 1], attn_resolutions=[8]
    )
    decoder = ChameleonVQDecoder(config)
    assert [len(level.attn) for level in decoder.up] == [0, config.num_res_blocks + 1, 0]


def to_subfolder(folder: Path) -> None:
    (folder / "tokenizer").mkdir()
    (folder / "vqgan.ckpt").rename(folder / "tokenizer/vqgan.ckpt")


def to_safetensors(folder: Path) -> None:
    save_file(original(folder), folder / "vqgan.safetensors")
    (folder / "vqgan.ckpt").unlink()


def bare_state_dict(folder: Path) -> None:
    torch.save(original(folder), folder / "vqgan.ckpt")


@pytest.mark.parametrize("move", [to_subfolder, to_safetensors, bare_state_dict])
def test_it_is_found_in_all_its_places(folder: Path, move: Callable[[Path], None]) -> None:
    expected = load(shared_tiny_chameleon())
    move(folder)
    codes = expected.encode_images(random_images(2))
    assert torch.equal(load(folder).render(codes), expected.render(codes))


def test_a_saved_model_carries_it_and_plain_transformers_reads_the_rest(
    folder: Path, tmp_path: Path
) -> None:
    backbone = load(folder)
    backbone.save_pretrained(tmp_path / "saved")
    codes = backbone.encode_images(random_images(2))
    saved = load(tmp_path / "saved")
    assert torch.equal(saved.render(codes), backbone.render(codes))
    assert saved.facts == backbone.facts
    plain = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert plain.config.architectures == ["ChameleonForConditionalGeneration"]
    ids = torch.tensor([backbone.layout.prompt_ids("a red circle")])
    assert torch.equal(plain(ids).logits, backbone.chameleon(ids).logits)


def test_the_files_own_codebook_replaces_its_rounded_copy(folder: Path) -> None:
    model = ChameleonForConditionalGeneration.from_pretrained(folder).to(torch.bfloat16)
    model.save_pretrained(folder)
    for dtype in ("auto", "float32"):
        backbone = load_backbone(folder, dtype=dtype, device="cpu")
        assert isinstance(backbone, ChameleonBackbone)
        exact = original(folder)["quantize.embedding.weight"]
        assert torch.equal(backbone.codebook(), exact)
        assert backbone.chameleon.model.vqmodel.decoder.conv_in.weight.dtype == torch.float32


# ---- wrong files --------------------------------------------------------------------------------
class Harmful:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("code was run",)


def harmful(folder: Path) -> None:
    torch.save({"state_dict": original(folder), "extra": Harmful()}, folder / "vqgan.ckpt")


def cut_off(folder: Path) -> None:
    whole = (folder / "vqgan.ckpt").read_bytes()
    (folder / "vqgan.ckpt").write_bytes(whole[: len(whole) // 2])


def empty(folder: Path) -> None:
    (folder / "vqgan.ckpt").write_bytes(b"")


def encoder_only(folder: Path) -> None:
    kept = {k: v for k, v in original(folder).items() if not k.startswith("decoder.")}
    torch.save({"state_dict": kept}, folder / "vqgan.ckpt")


def other_codebook(folder: Path) -> None:
    weights = original(folder)
    weights["quantize.embedding.weight"] = weights["quantize.embedding.weight"].flip(0)
    torch.save({"state_dict": weights}, folder / "vqgan.ckpt")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (harmful, "no file of plain tensors"),
        (cut_off, "no file of plain tensors"),
        (empty, "no file of plain tensors"),
        (encoder_only, "does not fit the model .*Missing key"),
        (other_codebook, "has another codebook than the model"),
    ],
)
def test_a_wrong_decoder_file_is_named(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    message: str,
) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "vqgan.ckpt" in str(caught.value) and "\n" not in str(caught.value)
    assert "code was run" not in capsys.readouterr().out


def test_a_missing_decoder_file_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="'/nowhere/vqgan.ckpt' is missing"):
        load(folder).load_decoder("/nowhere/vqgan.ckpt")
