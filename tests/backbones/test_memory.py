"""The estimate's formulas against what autograd really saves, on small models of the classes."""

import copy
import functools
from dataclasses import replace

import peft
import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionModel,
    JanusConfig,
    LlamaConfig,
    LlamaModel,
    Qwen2VLConfig,
    SiglipVisionModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer
from transformers.models.janus.modeling_janus import JanusVisionModel, JanusVQVAE
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

from tests.tiny_bagel import shared_tiny_bagel
from tests.tiny_chameleon import shared_tiny_chameleon
from tests.tiny_composed import shared_llm_dit, shared_vlm_unet
from tests.tiny_emu3 import shared_tiny_emu3
from unigame.backbones import load_backbone
from unigame.backbones.common import counting
from unigame.backbones.common.codes import PAIRS
from unigame.backbones.common.fast import lean_decoder
from unigame.backbones.composed import size as composed
from unigame.backbones.composed.config import ComposedConfig, ConnectorConfig
from unigame.backbones.janus.size import pro_config, size_of_config
from unigame.backbones.memory import (
    Learners,
    PerturberSize,
    PictureBytes,
    Setting,
    codebook_activations,
    denoising_activations,
    estimate,
    knows_targets,
    lm_activations,
    lora_weights,
    picture_activations,
    size_of,
    trained_bytes,
    vision_activations,
    weight_bytes,
)
from unigame.methods.selfplay.perturber import Perturber
from unigame.training.sharding import lora_layers, vision_layers

SAMPLES = 2


@functools.cache
def size_at(folder):
    """Counting takes seconds, and the tiny models stay as they are."""
    return size_of(str(folder))


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


def saved_by_tower(config, layers, checkpointing):
    """Bytes that a tower of so many layers saves, its layers recomputed or not."""
    vision = copy.deepcopy(config.vision_config)
    vision.num_hidden_layers = layers
    model = JanusVisionModel(vision).requires_grad_(False).eval()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = True  # as HubModel.train does it
    images_B3SS = torch.rand(SAMPLES, 3, 128, 128, requires_grad=True)
    return saved_bytes(lambda: model(images_B3SS).last_hidden_state, model)


def test_vision_activations(config, size):
    expected = vision_activations(size, SAMPLES, Setting(True, 1, checkpointing=False), "float32")
    assert saved_by_tower(config, 12, False) == pytest.approx(expected, rel=0.15)


def test_a_recomputed_tower_keeps_what_its_layers_read(config, size):
    setting = Setting(True, 1, checkpointing=True)
    one, twelve = (
        vision_activations(replace(size, vision_layers=layers), SAMPLES, setting, "float32")
        for layers in (1, 12)
    )
    held = [saved_by_tower(config, layers, True) for layers in (1, 12)]
    assert held[1] - held[0] == twelve - one
    # The one that is being recomputed is whole; 11 of 12 are not.
    layer = saved_by_tower(config, 2, False) - saved_by_tower(config, 1, False)
    assert twelve == pytest.approx(held[1] - held[0] + layer, rel=0.1)
    kept = vision_activations(size, SAMPLES, replace(setting, checkpointing=False), "float32")
    assert twelve < 0.2 * kept


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
    size, backbone = size_at(make()), load_backbone(make(), device="cpu")
    assert size.parameters == backbone.facts.num_parameters
    assert size.image_tokens == backbone.facts.num_image_tokens
    assert size.codebook_size == (backbone.facts.codebook_size or 0)
    assert size.lora_parameters == sum(
        p.numel() for p in backbone.add_lora().trainable_parameters()
    )
    shared = [p for layer in lora_layers(backbone) for p in layer.parameters()]
    assert size.layer_parameters == sum(p.numel() for p in shared if not p.requires_grad)
    towers = vision_layers(backbone) if backbone.frozen_towers() else []
    assert size.vision_layer_parameters == sum(
        p.numel() for layer in towers for p in layer.parameters()
    )
    half = load_backbone(make(), device="cpu", dtype="bfloat16")
    precise = sum(p.numel() for p in half.parameters() if p.dtype == torch.float32)
    assert size.float32_parameters == precise


@pytest.mark.parametrize("make", [shared_tiny_chameleon, shared_tiny_emu3])
def test_what_reads_and_draws_codes_saves_what_was_counted(make):
    size, backbone = size_at(make()), load_backbone(make(), device="cpu")
    images = torch.rand(1, 3, backbone.facts.image_size, backbone.facts.image_size)
    codes = backbone.encode_images(images)
    vectors = backbone.codebook().detach()[codes].requires_grad_()
    drawn = saved_bytes(lambda: backbone.decode_vectors(vectors), backbone)
    assert drawn == pytest.approx(size.drawing["float32"].whole, rel=0.05)
    read = saved_bytes(lambda: backbone.image_features(images.clone().requires_grad_()), backbone)
    assert read == pytest.approx(size.reading["float32"].whole, rel=0.05)


@pytest.mark.parametrize("make", [shared_vlm_unet, shared_llm_dit])
def test_redrawing_saves_what_was_counted(make):
    size, backbone = size_at(make()), load_backbone(make(), device="cpu")
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


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [shared_vlm_unet, shared_llm_dit])
def test_learning_captions_saves_what_was_counted(make, dtype, checkpointing):
    size = size_at(make())
    backbone = load_backbone(make(), device="cpu", dtype=dtype)
    if checkpointing:
        backbone.gradient_checkpointing_enable()
    found = backbone.visual_states(torch.rand(3, 3, 16, 16), ["a red circle"] * 3)
    states = found.states_BNH.requires_grad_()
    backbone.train()  # one noise level for each sample
    setting = Setting(False, 3, captions=3, checkpointing=checkpointing)
    counted = denoising_activations(size, 3, setting, dtype)
    seen = saved_bytes(lambda: backbone._noise_loss(found.codes, states), backbone)
    # The loss itself is not counted: of 8 px latents it is a few hundredths.
    assert seen == pytest.approx(counted, rel=0.08)


def test_captions_cost_what_denoises_them_and_only_them():
    size = size_at(shared_vlm_unet())
    for checkpointing in (False, True):
        one, more = (
            Setting(False, 2, captions=captions, checkpointing=checkpointing) for captions in (0, 2)
        )
        language = [lm_activations(size, rows, one, "bfloat16") for rows in (2, 4)]
        learned = denoising_activations(size, 2, more, "bfloat16")
        found = [estimate(size, setting, "bfloat16").activations for setting in (one, more)]
        assert found[1] - found[0] == language[1] - language[0] + learned and learned > 0
    redrawn = estimate(size, replace(one, redrawn=2), "bfloat16").activations
    assert redrawn - found[0] == lm_activations(size, 4, one, "bfloat16") + learned


def test_weights_that_autocast_writes_out_are_kept_once_for_all_pictures():
    counted = size_at(shared_vlm_unet()).denoising
    assert counted["float32"].cast == 0 < counted["bfloat16"].held_cast < counted["bfloat16"].cast
    assert counted["bfloat16"].whole < 0.7 * counted["float32"].whole


def test_the_width_of_eyes_is_that_of_their_layers(tmp_path, monkeypatch):
    nothing = ({}, {})  # of drawing, which is not asked for here
    monkeypatch.setattr(composed, "_picture_bytes", lambda *_: nothing, raising=False)
    pipeline = shared_vlm_unet().parent / "pipeline"
    language = Qwen2VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
            },
        },
        # In Qwen2-VL, and in no other VLM here, hidden_size is the language model's.
        vision_config={
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 4,
            "patch_size": 4,
        },
    )
    language.save_pretrained(tmp_path / "language")
    config = ComposedConfig(
        str(tmp_path / "language"),
        str(pipeline),
        image_size=16,
        connector=ConnectorConfig(width=32),
    )
    config.save(tmp_path)
    size = size_of(str(tmp_path))
    assert (size.vision_hidden, size.hidden_size) == (16, 32)


@pytest.mark.parametrize(
    "tower",
    [
        Qwen2VisionTransformerPretrainedModel,
        Qwen2_5_VisionTransformerPretrainedModel,
        SmolVLMVisionTransformer,
        Idefics3VisionTransformer,
        SiglipVisionModel,
        CLIPVisionModel,
    ],
)
def test_the_width_is_that_of_every_tower_that_a_composed_model_may_have(tower):
    config = tower.config_class()
    with torch.device("meta"):
        layers = [part for part in tower(config).modules() if type(part) is nn.ModuleList]
    (norm,) = [
        part for name, part in layers[0][0].named_children() if name in ("norm1", "layer_norm1")
    ]
    assert composed._width(config) == norm.weight.numel()


def test_a_flows_drawing_saves_what_was_counted():
    size = size_at(shared_tiny_bagel())
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


@pytest.mark.parametrize("targets", [None, ("q_proj", "down_proj"), "all-linear"], ids=str)
@pytest.mark.parametrize("make", [shared_tiny_bagel, shared_vlm_unet])
def test_lora_of_a_recipe_is_counted_as_it_is_made(make, targets):
    size, backbone = size_at(make()), load_backbone(make(), device="cpu")
    wanted = list(targets) if isinstance(targets, tuple) else targets
    backbone.add_lora(peft.LoraConfig(r=5, target_modules=wanted))
    learners = Learners(lora_rank=5, lora_targets=targets)
    assert lora_weights(size, learners) == sum(p.numel() for p in backbone.trainable_parameters())


def test_targets_that_are_no_names_are_taken_for_the_usual_ones(size):
    for targets in (".*q_proj", ("q_proj", "no_proj")):
        assert not knows_targets(size, targets)
        assert lora_weights(size, Learners(32, targets)) == 2 * size.lora_parameters


def test_parts_that_train_take_the_place_of_lora():
    size, backbone = size_at(shared_llm_dit()), load_backbone(shared_llm_dit(), device="cpu")
    backbone.unfreeze(["connector", "projector"])
    own = sum(p.numel() for p in backbone.trainable_parameters())
    setting = Setting(False, 1, learners=Learners(parts=("connector", "projector")))
    # Their gradients and moments: the weights are in the model.
    assert trained_bytes(size, setting) == 12 * own


@pytest.mark.parametrize(
    "shape",
    [
        PerturberSize(),
        PerturberSize(width=8, depth=5),
        PerturberSize(width=8, depth=2, heads=4, shared=True),
        PerturberSize(depth=0, heads=3, shared=True),
        PerturberSize(depth=1),
    ],
)
def test_c_is_counted_as_it_is_made(shape):
    made = Perturber(
        32,
        shape.width,
        shape.depth,
        scope="shared" if shape.shared else "token",
        heads=shape.heads,
    )
    assert shape.parameters(32) == sum(p.numel() for p in made.parameters())


def test_each_process_holds_its_share_of_frozen_layers(size):
    def held(processes, vision=False, dtype="bfloat16", quantization="none"):
        setting = Setting(True, 4, processes=processes, shards_vision=vision)
        return weight_bytes(size, setting, dtype, quantization)

    whole = held(1)
    assert whole - held(2) == size.layer_parameters
    assert whole - held(4) == 1.5 * size.layer_parameters
    assert held(2) - held(2, vision=True) == size.vision_layer_parameters
    assert held(1, dtype="float32") - held(2, dtype="float32") == 2 * size.layer_parameters


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
    assert total(learners=Learners(lora_rank=64)) > total() > total(processes=2)
    assert total() > total(learners=Learners(perturber=None))
