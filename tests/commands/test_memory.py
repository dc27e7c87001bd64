"""The estimate's formulas against what autograd really saves, on small models of the classes."""

import peft
import pytest
import torch
from transformers import JanusConfig, LlamaConfig, LlamaModel
from transformers.models.janus.modeling_janus import JanusVisionModel, JanusVQVAE

from unigame.commands.memory import (
    Setting,
    _count_lora,
    decoder_activations,
    estimate,
    janus_pro_config,
    lm_activations,
    measure,
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
    return measure("tiny", config)


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


def test_decoder_activations(config, size):
    model = JanusVQVAE(config.vq_config).requires_grad_(False)
    latent_BChw = torch.randn(SAMPLES, 32, 8, 8, requires_grad=True)
    seen = saved_bytes(lambda: model.decoder(latent_BChw), model)
    assert seen == pytest.approx(decoder_activations(size, SAMPLES, "float32"), rel=0.15)


def test_published_sizes_are_counted_right():
    """Against the parameter counts that the model cards of the checkpoints give."""
    one, seven = (measure(name, janus_pro_config(name)) for name in ("1B", "7B"))
    assert one.parameters == pytest.approx(2.09e9, rel=0.01)
    assert seven.parameters == pytest.approx(7.42e9, rel=0.01)
    assert one.image_tokens == seven.image_tokens == 576


def test_lora_weights_are_counted_as_peft_makes_them(config):
    lora = peft.LoraConfig(r=16, target_modules="all-linear")
    model = peft.get_peft_model(LlamaModel(LlamaConfig(**config.text_config.to_dict())), lora)
    made = sum(p.numel() for name, p in model.named_parameters() if "lora" in name)
    assert _count_lora(config.text_config) == made


def test_the_estimate_moves_with_what_is_asked(size):
    def total(game=True, batch=4, dtype="bfloat16", **settings):
        return estimate(size, Setting(game, batch, **settings), dtype).total

    assert total(game=False) < total()
    assert total(batch=8) > total()
    assert total(candidates=4) > total()
    assert total(checkpointing=False) > total()
    assert total(dtype="float32") > total()
    assert total(hard=64) > total(hard=0)
    assert total(game=False, captions=4) > total(game=False)
