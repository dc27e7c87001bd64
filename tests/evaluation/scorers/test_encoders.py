import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    BertConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Model,
    SiglipModel,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from tests.evaluation.scorers import tiny_scorers
from unigame.errors import UserError
from unigame.evaluation.scorers import encoders
from unigame.evaluation.scorers.encoders import DreamSimEncoder, HubEncoder, encoder_list, label_of

TINY = [tiny_scorers.clip, tiny_scorers.siglip, tiny_scorers.dinov2, tiny_scorers.dinov3]


def noise(size, seed=0):
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


IMAGES = [noise((40, 64), 0), noise((32, 32), 1), noise((50, 30), 2)]


@pytest.mark.parametrize("build", TINY)
def test_a_batch_is_encoded_as_each_picture_alone(build):
    encoder = HubEncoder(build(), batch_size=2, device="cpu")
    together = encoder.encode(IMAGES)
    assert together.dtype == np.float32
    alone = np.concatenate([encoder.encode([image]) for image in IMAGES])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3
    assert len(encoder.encode([])) == 0


def pixels(build):
    processor = AutoImageProcessor.from_pretrained(build(), backend="pil")
    return processor(images=IMAGES, return_tensors="pt")["pixel_values"]


def test_the_feature_of_clip_is_the_projected_one():
    model = CLIPModel.from_pretrained(tiny_scorers.clip()).eval()
    with torch.no_grad():
        said = model(input_ids=torch.tensor([[1, 2]]), pixel_values=pixels(tiny_scorers.clip))
    ours = HubEncoder(tiny_scorers.clip(), device="cpu").encode(IMAGES)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, said.image_embeds, atol=1e-5)


def test_the_feature_of_siglip_is_the_pooled_one():
    model = SiglipModel.from_pretrained(tiny_scorers.siglip()).eval()
    with torch.no_grad():
        said = model(input_ids=torch.tensor([[1, 2]]), pixel_values=pixels(tiny_scorers.siglip))
    ours = HubEncoder(tiny_scorers.siglip(), device="cpu").encode(IMAGES)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, said.image_embeds, atol=1e-5)


def test_the_feature_of_dinov2_is_the_class_token():
    model = Dinov2Model.from_pretrained(tiny_scorers.dinov2()).eval()
    with torch.no_grad():
        hidden = model(pixel_values=pixels(tiny_scorers.dinov2)).last_hidden_state
    ours = HubEncoder(tiny_scorers.dinov2(), device="cpu").encode(IMAGES)
    np.testing.assert_allclose(ours, hidden[:, 0], atol=1e-5)


def test_dinov3_does_without_torchvision():
    """Its own image processor needs torchvision; the PIL one gives what its file asks for."""
    encoder = HubEncoder(tiny_scorers.dinov3(), device="cpu")
    values = encoder.checkpoint.pixels([Image.new("RGB", (50, 30), (255, 0, 0))])["pixel_values"]
    assert values.shape == (1, 3, 32, 32)
    expected = (torch.tensor([1.0, 0.0, 0.0]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(values[0, :, 5, 5], expected, atol=1e-5, rtol=0)


def test_weights_are_let_go_and_come_back():
    encoder = HubEncoder(tiny_scorers.dinov2(), device="cpu")
    encoder.check()
    assert encoder.checkpoint._model is None
    first = encoder.encode(IMAGES)
    assert encoder.checkpoint._model is not None
    encoder.unload()
    assert encoder.checkpoint._model is None
    np.testing.assert_array_equal(encoder.encode(IMAGES), first)


def test_half_precision_weights_run_in_float32(tmp_path):
    CLIPModel.from_pretrained(tiny_scorers.clip()).half().save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(tiny_scorers.clip(), backend="pil").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    model = HubEncoder(tmp_path, device="cpu").checkpoint.load()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


# ---- lists ---------------------------------------------------------------------------------------


def test_presets_and_names():
    assert encoder_list("paper") == ["clip", "siglip", "dinov2", "dreamsim"]
    assert encoder_list(["uae"]) == ["clip", "longclip", "dinov2", "dinov3"]
    assert encoder_list("clip, owner/other") == ["clip", "owner/other"]
    assert label_of("owner/other") == "other"
    assert label_of(SimpleNamespace(name="mine@0123")) == "mine"
    for preset in encoders.PRESETS.values():
        assert set(preset) <= set(encoders.ENCODERS)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("papers", "encoder 'papers' is unknown; presets are paper, uae"),
        (["clip", "clip"], "clip, clip: give at least one, and each once"),
        ([], "none: give at least one"),
    ],
)
def test_a_wrong_list_is_refused_at_once(chosen, message):
    with pytest.raises(UserError, match=message):
        encoder_list(chosen)


# ---- what can go wrong ---------------------------------------------------------------------------


def test_another_kind_of_model_is_refused(tmp_path):
    BertConfig(hidden_size=16, num_attention_heads=2).save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(tiny_scorers.clip(), backend="pil").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model of type 'bert'; known are clip"):
        HubEncoder(tmp_path)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    """Otherwise the projection would be random numbers, and so would the score."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    CLIPVisionModel(vision).save_pretrained(tmp_path)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((tiny_scorers.clip() / name).read_bytes())
    with pytest.raises(UserError, match="lacks .* weights of its architecture"):
        HubEncoder(tmp_path, device="cpu").check()


def test_an_empty_folder_and_a_model_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"its config.json cannot be had"):
        HubEncoder(tmp_path)
    with pytest.raises(UserError, match="no such folder; give a checkpoint folder or a Hub id"):
        HubEncoder(tmp_path / "missing")
    with pytest.raises(UserError, match="nobody/nothing.*check the spelling and the network"):
        HubEncoder("nobody/nothing")


@pytest.mark.parametrize(
    "said",
    [
        "You are trying to access a gated repo.\nMake sure to have access to it",
        "403 Client Error. Cannot access gated repo for url",
        "401 Client Error: Unauthorized",
    ],
)
def test_a_gated_model_is_one_clear_line(said, monkeypatch):
    def refuse(source):
        raise OSError("the file is not there") from RuntimeError(said)

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(UserError, match="'facebook/dinov3.*' is gated: accept its terms") as caught:
        encoders.open_encoder("dinov3")
    assert "\n" not in str(caught.value)
    assert "HF_TOKEN" in str(caught.value)


# ---- DreamSim ------------------------------------------------------------------------------------


def test_without_the_package_dreamsim_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(UserError, match="install it with pip install dreamsim"):
        encoders.open_encoder("dreamsim")


def fake_dreamsim(calls):
    """The package's interface: a model with ``embed``, and a preprocessing function."""

    def dreamsim(pretrained, device, cache_dir):
        calls.append((pretrained, device, cache_dir))
        preprocess = lambda image: torch.tensor(np.asarray(image.resize((4, 4)), np.float32))[None]  # noqa: E731
        return SimpleNamespace(embed=lambda batch: batch.mean((1, 2))), preprocess

    module = ModuleType("dreamsim")
    module.dreamsim = dreamsim
    return module


def test_dreamsim_encodes_through_its_package(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "dreamsim", fake_dreamsim(calls))
    encoder = DreamSimEncoder(batch_size=2, device="cpu")
    assert calls == []
    vectors = encoder.encode([Image.new("RGB", (9, 9), (i, 2 * i, 0)) for i in (1, 2, 3)])
    np.testing.assert_allclose(vectors, [[1, 2, 0], [2, 4, 0], [3, 6, 0]])
    (call,) = calls
    assert call[:2] == (True, "cpu")
    assert call[2].startswith(torch.hub.get_dir())
