from __future__ import annotations

import json

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from tests.methods.selfplay.fake_backbone import FakeBackbone
from unigame.errors import UserError
from unigame.methods.selfplay import ClipSimilarity, FeatureSimilarity, NoSimilarity, build_scorer

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TEXT = TOWER | {"vocab_size": 40, "max_position_embeddings": 8, "eos_token_id": 1}
VISION = TOWER | {"image_size": 16, "patch_size": 8}
PREPROCESSING = {
    "size": {"shortest_edge": 20},
    "do_center_crop": True,
    "crop_size": {"height": 16, "width": 16},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
    "resample": 3,
}


class WordTokenizer:
    """Letters to numbers: enough of a tokenizer for a text tower."""

    def __call__(self, texts, *, padding, max_length, truncation, return_tensors):
        from transformers import BatchEncoding

        assert padding == "max_length" and truncation and return_tensors == "pt"
        rows = [[2 + ord(c) % 30 for c in text][: max_length - 1] + [1] for text in texts]
        ids = torch.tensor([row + [1] * (max_length - len(row)) for row in rows])
        return BatchEncoding({"input_ids": ids})


@pytest.fixture(scope="module")
def clip_model():
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12))


@pytest.fixture(scope="module")
def siglip_model():
    torch.manual_seed(0)
    return SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))


def pictures(count: int, side: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["clip", "siglip"])
def model(request):
    return request.getfixturevalue(f"{request.param}_model")


def test_image_image_rows_ones_and_gradient(model):
    scorer = ClipSimilarity(model, preprocessing=PREPROCESSING)
    originals = pictures(2)
    candidates = originals.repeat_interleave(3, dim=0).clone()
    candidates[1] = pictures(1, seed=9)[0]
    candidates.requires_grad_(True)
    scores = scorer(candidates, originals, ["", ""])
    assert scores.shape == (6,)
    assert torch.allclose(scores[[0, 2, 3, 4, 5]], torch.ones(5), atol=1e-5)
    assert scores[1] < 0.999
    (gradient,) = torch.autograd.grad(scores[1], candidates)
    assert gradient[1].abs().max() > 0
    assert gradient[[0, 2, 3, 4, 5]].abs().max() == 0
    assert not any(p.requires_grad for p in scorer.parameters())


def test_image_text_compares_with_each_samples_own_text(model):
    scorer = ClipSimilarity(
        model, "image-text", preprocessing=PREPROCESSING, tokenizer=WordTokenizer()
    )
    image = pictures(1)
    images = torch.cat([image, image, image, image]).requires_grad_(True)
    scores = scorer(images, images[:2], ["a cat", "two dogs"])
    assert scores[0] == scores[1] and scores[2] == scores[3] and scores[0] != scores[2]
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert gradient.abs().max() > 0


def test_pixels_equal_the_image_processor(clip_model):
    from PIL import Image

    scorer = ClipSimilarity(clip_model, preprocessing=PREPROCESSING)
    processor = pytest.importorskip(
        "transformers.models.clip.image_processing_pil_clip"
    ).CLIPImageProcessorPil(**PREPROCESSING)
    # Mid-tones: PIL clips between its horizontal and its vertical pass, which torch does not.
    bytes_HWC = (pictures(1)[0] * 127 + 64).round().byte().permute(1, 2, 0)
    expected = processor(Image.fromarray(bytes_HWC.numpy()), return_tensors="pt")["pixel_values"]
    ours = scorer.pixels(bytes_HWC.permute(2, 0, 1)[None] / 255.0)
    assert ours.shape == expected.shape == (1, 3, 16, 16)
    assert (ours - expected).abs().max() < 2 / 255 / 0.2  # PIL rounds to bytes after the resize


def test_loads_from_a_folder(clip_model, tmp_path):
    clip_model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(PREPROCESSING | {"image_processor_type": "CLIPImageProcessor"})
    )
    loaded = build_scorer("clip", FakeBackbone(), clip_model=tmp_path)
    direct = ClipSimilarity(clip_model, preprocessing=PREPROCESSING)
    one, two = pictures(1), pictures(1, seed=1)
    assert torch.allclose(loaded(one, two, [""]), direct(one, two, [""]), atol=1e-6)


def test_stays_in_evaluation_mode(clip_model):
    scorer = ClipSimilarity(clip_model, preprocessing=PREPROCESSING).train()
    assert not scorer.training and not clip_model.training


def test_wrong_checkpoints_are_named(clip_model, tmp_path):
    with pytest.raises(UserError, match="no-such-folder"):
        ClipSimilarity(tmp_path / "no-such-folder")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="'bert'"):
        ClipSimilarity(tmp_path)
    with pytest.raises(UserError, match="preprocessing"):
        ClipSimilarity(clip_model)
    with pytest.raises(UserError, match="tokenizer"):
        ClipSimilarity(clip_model, "image-text", preprocessing=PREPROCESSING)
    with pytest.raises(UserError, match="sideways"):
        ClipSimilarity(clip_model, "sideways", preprocessing=PREPROCESSING)
    with pytest.raises(UserError, match="token space"):
        scorer = ClipSimilarity(clip_model, preprocessing=PREPROCESSING)
        scorer.score_tokens(torch.ones(1, 2, 3), torch.ones(1, 2, 3))


def test_feature_similarity_is_the_mean_token_cosine():
    backbone = FakeBackbone()
    scorer = FeatureSimilarity(backbone.image_features)
    originals, candidates = pictures(2, side=8), pictures(4, side=8, seed=1).requires_grad_(True)
    scores = scorer(candidates, originals, ["", ""])
    for row in range(4):
        a = backbone.image_features(candidates[row : row + 1])[0]
        b = backbone.image_features(originals[row // 2 : row // 2 + 1])[0]
        expected = torch.stack([x @ y / (x.norm() * y.norm()) for x, y in zip(a, b, strict=True)])
        assert scores[row].item() == pytest.approx(expected.mean().item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(scores.sum(), candidates)
    assert gradient.abs().max() > 0
    assert not list(scorer.parameters())  # the backbone is not part of the scorer


def test_no_similarity_passes_everything():
    assert NoSimilarity()(pictures(4), pictures(2), ["", ""]).tolist() == [1.0] * 4
    assert NoSimilarity().score_tokens(torch.ones(4, 2, 3), torch.ones(2, 2, 3)).tolist() == [1] * 4


def test_rows_that_are_no_multiple_are_refused():
    scorer = FeatureSimilarity(FakeBackbone().image_features)
    with pytest.raises(ValueError, match="not a multiple"):
        scorer(pictures(3, side=8), pictures(2, side=8), ["", ""])


def test_build_scorer_names_what_is_wrong():
    backbone = FakeBackbone()
    assert isinstance(build_scorer("none", backbone), NoSimilarity)
    assert isinstance(build_scorer("cosine", backbone), FeatureSimilarity)
    with pytest.raises(UserError, match="clip_model"):
        build_scorer("clip", backbone)
    with pytest.raises(UserError, match="'lpips'"):
        build_scorer("lpips", backbone)
