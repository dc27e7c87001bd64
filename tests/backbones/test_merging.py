"""A merged checkpoint is plain, and says and draws what base and adapter did."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.backbones.merging import merge
from unigame.errors import UserError


@pytest.fixture
def adapter(checkpoint: Path, backbone: Backbone, tmp_path: Path) -> Path:
    """One that changes what the model says: LoRA starts at zero."""
    backbone.source = str(checkpoint)
    backbone.add_lora(peft.LoraConfig(r=4, lora_alpha=16, lora_dropout=0.05))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=noise))
    backbone.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_merged_model_is_plain_and_equal(checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    done = merge(adapter, out, device="cpu")
    assert done.base == str(checkpoint) and done.loss_gap < 1e-4 and done.answers == 4
    assert done.pixel_gap is not None and done.pixel_gap < 1e-3
    merged = load_backbone(out, device="cpu")
    images = torch.rand(2, 3, merged.facts.image_size, merged.facts.image_size)
    asked = (images, ["what colour is it"] * 2, ["red", "blue"])
    base = load_backbone(checkpoint, device="cpu")
    assert (merged.answer_loss(*asked) - base.answer_loss(*asked)).abs().max() > 1e-3
    # Plain transformers: every weight is found, and none is LoRA's.
    place = out / "language" if (out / "language").is_dir() else out
    model: type = type(merged.base)  # type: ignore[attr-defined]
    if merged.facts.family == "bagel":  # of our own; it refuses what is missing or left over
        plain = model.from_pretrained(place)  # type: ignore[attr-defined]
    else:
        plain, info = model.from_pretrained(place, output_loading_info=True)  # type: ignore[attr-defined]
        assert not info["missing_keys"] and not info["mismatched_keys"]
    own = merged.base.state_dict()  # type: ignore[attr-defined]
    assert not any("lora" in name for name in own)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight.float(), own[name].float()), name


def test_what_cannot_be_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny import shared_tiny_janus

    with pytest.raises(UserError, match="adapter_config.json"):
        merge(tmp_path, tmp_path / "out")
    model = load_backbone(shared_tiny_janus(), device="cpu").add_lora()
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match="full"):
        merge(tmp_path / "adapter", tmp_path / "full")
    monkeypatch.setattr("unigame.backbones.merging.TOLERANCE", {torch.float32: -1.0})
    with pytest.raises(UserError, match="differ"):
        merge(tmp_path / "adapter", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
