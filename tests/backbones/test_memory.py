"""The estimate's formulas against what autograd really saves, on small models of the classes."""

from dataclasses import replace

import peft
import pytest
import torch
from torch import nn
from transformers import JanusConfig, LlamaConfig, LlamaModel
from transformers.models.janus.modeling_janus import JanusVisionModel, JanusVQVAE

from tests.tiny_bagel import shared_tiny_bagel
from tests.tiny_chameleon import shared_tiny_chameleon
from tests.tiny_composed import shared_llm_dit, shared_vlm_unet
from tests.tiny_emu3 import shared_tiny_emu3
from unigame.backbones import load_backbone
from unigame.backbones.common import counting
from unigame.backbones.common.codes import PAIRS
from unigame.backbones.common.fast import lean_decoder
from unigame.backbones.janus.size import pro_config, size_of_config
from unigame.backbones.memory import (
    PictureBytes,
    Setting,
    codebook_activations,
    estimate,
    lm_activations,
    picture_activations,
    size_of,
    vision_activations,
)

SAMPLES = 2


@pytest.fixture(scope="module")
def config():
    return JanusConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": 256,
            "intermediate_size": 640,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": 64,
        },
        vision_config={
            "hidden_size": 128,
            "num_hidden_layers": 12,
            "num_attention_heads": 4,
            "image_size": 128,
            "patch_size": 16,
            "projection_dim": 256,
        },
        vq_config={
            "base_channels": 32,
            "latent_channels": 32,
            "num_embeddings": 64,
            "projection_dim": 256,
            "image_token_embed_dim": 256,
        },
    )


@pytest.fixture(scope="module")
def size(config):
    return size_of_config("tiny", config)


def saved_bytes(forward, module):
    """Bytes that autograd keeps for backward, each storage once, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    return sum(nbytes for nbytes, _ in kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_language_model_activations(config, size, dtype):
    text = LlamaConfig(**config.text_config.to_dict())
    lora = peft.LoraConfig(r=16, lora_dropout=0.05, target_modules="all-linear")
    model = peft.get_peft_model(LlamaModel(text), lora).train()
    for name, weight in model.named_parameters():
        if "lora" not in name:
            weight.data = weight.data.to(getattr(torch, dtype))
    tokens = size.image_tokens + 64
    states_BTH = torch.randn(SAMPLES, tokens, 256, dtype=getattr(torch, dtype), requires_grad=True)

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return model(inputs_embeds=states_BTH, use_cache=False).last_hidden_state

    expected = lm_activations(size, SAMPLES, Setting(False, 1, checkpointing=False), dtype)
    assert saved_bytes(forward, model) == pytest.approx(expected, rel=0.15)


def test_vision_activations(config, size):
    model = JanusVisionModel(config.vision_config).requires_grad_(False)
    images_B3SS = torch.rand(SAMPLES, 3, 128, 128, requires_grad=True)
    seen = saved_bytes(lambda: model(images_B3SS).last_hidden_state, model)
    assert seen == pytest.approx(vision_activations(size, SAMPLES, "float32"), rel=0.15)


def test_what_draws_is_counted_without_memory_as_it_saves_in_truth(config, size):
    model = JanusVQVAE(config.vq_config).requires_grad_(False)
    latent_BChw = torch.randn(1, config.vq_config.embed_dim, 8, 8, requires_grad=True)

    def draw() -> torch.Tensor:
        return lean_decoder.decode(model.decoder, model.post_quant_conv(latent_BChw))

    assert saved_bytes(draw, model) == size.drawing["float32"].whole


def test_under_autocast_the_count_is_that_of_autocast():
    def build():
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 3, 3))

    model, pixels_B3SS = build().requires_grad_(False), torch.rand(1, 3, 8, 8, requires_grad=True)

    def forward():
        with torch.autocast("cpu", torch.bfloat16):
            return model(pixels_B3SS)

    counted = counting.saved_bytes(
        build, lambda module: module(counting.leaf(1, 3, 8, 8)), "bfloat16"
    )
    assert counted == saved_bytes(forward, model) > 0


@pytest.mark.parametrize(
    "make",
    [shared_tiny_bagel, shared_tiny_chameleon, shared_tiny_emu3, shared_vlm_unet, shared_llm_dit],
)
def test_weights_of_every_family_are_counted_as_they_load(make):
    size, backbone = size_of(str(make())), load_backbone(make(), device="cpu")
    assert size.parameters == backbone.facts.num_parameters
    assert size.image_tokens == backbone.facts.num_image_tokens
    assert size.codebook_size == (backbone.facts.codebook_size or 0)
    assert size.lora_parameters == sum(
        p.numel() for p in backbone.add_lora().trainable_parameters()
    )
    half = load_backbone(make(), device="cpu", dtype="bfloat16")
    precise = sum(p.numel() for p in half.parameters() if p.dtype == torch.float32)
    assert size.float32_parameters == precise


@pytest.mark.parametrize("make", [shared_tiny_chameleon, shared_tiny_emu3])
def test_what_reads_and_draws_codes_saves_what_was_counted(make):
    size, backbone = size_of(str(make())), load_backbone(make(), device="cpu")
    images = torch.rand(1, 3, backbone.facts.image_size, backbone.facts.image_size)
    codes = backbone.encode_images(images)
    vectors = backbone.codebook().detach()[codes].requires_grad_()
    drawn = saved_bytes(lambda: backbone.decode_vectors(vectors), backbone)
    assert drawn == pytest.approx(size.drawing["float32"].whole, rel=0.05)
    read = saved_bytes(lambda: backbone.image_features(images.clone().requires_grad_()), backbone)
    assert read == pytest.approx(size.reading["float32"].whole, rel=0.05)


@pytest.mark.parametrize("make", [shared_vlm_unet, shared_llm_dit])
def test_redrawing_saves_what_was_counted(make):
    size, backbone = size_of(str(make())), load_backbone(make(), device="cpu")
    images = torch.rand(1, 3, 16, 16)
    found = backbone.visual_states(images, ["a red circle"])
    states = found.states_BNH.requires_grad_()
    counted = size.drawing["float32"]
    drawn = saved_bytes(lambda: backbone.draw(states, found.codes).images, backbone)
    assert drawn == pytest.approx(counted.whole, rel=0.05)
    backbone.gradient_checkpointing_enable()
    own = found.codes

    def denoise():
        return backbone.branch.redraw(own, backbone.trained.connector(states), own, 0.5, 1)

    assert saved_bytes(denoise, backbone) == pytest.approx(counted.held, rel=0.05)


def test_a_flows_drawing_saves_what_was_counted():
    size = size_of(str(shared_tiny_bagel()))
    backbone = load_backbone(shared_tiny_bagel(), device="cpu")
    found = backbone.visual_states(torch.rand(1, 3, 16, 16), ["a red circle"])
    states = found.states_BNH.requires_grad_()
    drawn = saved_bytes(lambda: backbone.draw(states, found.codes).images, backbone)
    assert drawn == pytest.approx(size.drawing["float32"].whole, rel=0.05)


def test_checkpointing_holds_a_few_pictures_at_a_time(size):
    saved = {"float32": PictureBytes(whole=100.0, held=1.0, recomputed=70.0)}
    other = {"float32": PictureBytes(whole=50.0, held=2.0, recomputed=60.0)}
    size = replace(size, drawing=saved, reading=other, pictures_at_once=2)

    def found(samples, checkpointing):
        return picture_activations(
            size, samples, Setting(True, 8, candidates=1, checkpointing=checkpointing), "float32"
        )

    assert found(8, False) == 8 * 150
    assert found(8, True) == 8 * 3 + 2 * 70
    assert found(1, True) == 3 + 70


def test_scores_of_codes_that_are_read_are_made_in_parts(size):
    once = codebook_activations(size, 4)
    assert codebook_activations(replace(size, reads_codes=True), 4) == 2 * once
    large = replace(size, reads_codes=True, codebook_size=PAIRS, image_tokens=4)
    assert codebook_activations(large, 1) == (4 + 1) * PAIRS * 16


def test_published_sizes_are_counted_right():
    """Against the parameter counts that the model cards of the checkpoints give."""
    one, seven = (size_of_config(name, pro_config(name)) for name in ("1B", "7B"))
    assert one.parameters == pytest.approx(2.09e9, rel=0.01)
    assert seven.parameters == pytest.approx(7.42e9, rel=0.01)
    assert one.image_tokens == seven.image_tokens == 576


def test_lora_weights_are_counted_as_peft_makes_them(config, size):
    lora = peft.LoraConfig(r=16, target_modules="all-linear")
    model = peft.get_peft_model(LlamaModel(LlamaConfig(**config.text_config.to_dict())), lora)
    made = sum(p.numel() for name, p in model.named_parameters() if "lora" in name)
    assert size.lora_parameters == made


def test_the_estimate_moves_with_what_is_asked(size):
    def total(game=True, batch=4, dtype="bfloat16", **settings):
        return estimate(size, Setting(game, batch, **settings), dtype).total

    assert total(game=False) < total()
    assert total(batch=8) > total()
    assert total(candidates=4) > total()
    assert total(checkpointing=False) > total()
    assert total(dtype="float32") > total()
    assert total(hard=64) == total(hard=0)  # U reads them in passes of a batch
    assert total(hard=64, read_at_once=68) > total(hard=64)
    assert (
        total(batch=8, challenged_at_once=1) < total(batch=8) < total(batch=8, challenged_at_once=8)
    )
    assert total(game=False, captions=4) > total(game=False)
